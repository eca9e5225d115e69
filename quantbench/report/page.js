"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const views = new Map();

  // The interpreter (ast) avoids eval, which the policy forbids; nothing is loaded, so the loader refuses everything. Only
  // errors are logged, as Vega warns about the axes of an empty chart, which a variant without a figure makes.
  const options = {
    ast: true, logLevel: 1, renderer: "svg", actions: false, defaultStyle: false,
    tooltip: { disableDefaultStyle: true, theme: "plain" },
    loader: { load: () => Promise.reject(new Error("this page loads nothing")) },
  };

  const read = (id) => JSON.parse(document.getElementById(id).textContent);

  // Charts that share their points: each row holds the values of the fields, the first of them places in a list of texts.
  const unpack = ({ texts, named, fields, rows }) => rows.map(
    (row) => Object.fromEntries(fields.map((field, index) => [field, index < named ? texts[row[index]] : row[index]])));

  const draw = async (node) => {
    try {
      const spec = read(node.dataset.spec);
      if (node.dataset.points) spec.datasets = { points: unpack(read(node.dataset.points)) };
      views.set(node, (await vegaEmbed(node, spec, options)).view);
      node.dataset.state = "drawn";
    } catch (error) {
      node.dataset.state = "failed";
      node.textContent = `This chart could not be drawn: ${error.message}`;
      console.error(error);
    }
  };

  const setUpHistory = () => {
    for (const select of all("[data-picked]")) {
      const course = select.closest(".course");
      select.addEventListener("change", () => {
        for (const node of all(".plot", course)) views.get(node)?.signal("picked", select.value).runAsync();
      });
    }
  };

  const setUpAnswers = () => {
    for (const part of all(".answers")) {
      const prompt = part.querySelector("[data-prompt]");
      const turn = (open) => { for (const each of all("details.answer", part)) each.open = open; };
      part.querySelector("[data-open]").addEventListener("click", () => turn(true));
      part.querySelector("[data-close]").addEventListener("click", () => turn(false));
      prompt.addEventListener("change", () => {
        for (const pair of all(".pair", part)) pair.hidden = prompt.value !== "" && pair.dataset.number !== prompt.value;
      });
    }
  };

  const setUpFilter = (rows) => {
    const [text, method, status, count] = ["text", "method", "status", "count"].map((name) => document.getElementById(`filter-${name}`));
    const apply = () => {
      const words = text.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      for (const row of rows) {
        const fits = (!method.value || row.dataset.method === method.value) && (!status.value || row.dataset.status === status.value)
          && words.every((word) => row.dataset.words.includes(word));
        row.hidden = !fits;
        shown += fits;
      }
      count.textContent = `${shown} of ${rows.length} rows`;
    };
    text.addEventListener("input", apply);
    for (const select of [method, status]) select.addEventListener("change", apply);
    text.form.addEventListener("submit", (event) => event.preventDefault());
    apply();
  };

  // Missing figures stay last in both directions.
  const compare = (index, numeric, sign) => (one, other) => {
    const [a, b] = [one, other].map((row) => row.cells[index].dataset.key);
    if (!a || !b) return !a - !b;
    return sign * (numeric ? a - b : a.localeCompare(b, "en", { numeric: true }));
  };

  const setUpSort = (table, rows) => {
    const heads = all("thead th", table);
    heads.forEach((head, index) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const falling = head.getAttribute("aria-sort") === "ascending";
        for (const each of heads) each.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", falling ? "descending" : "ascending");
        const order = [...rows].sort(compare(index, head.classList.contains("number"), falling ? -1 : 1));
        table.tBodies[0].append(...order);
      });
    });
  };

  for (const each of all(".controls")) each.hidden = false;
  const table = document.getElementById("all");
  const rows = [...table.tBodies[0].rows];
  setUpFilter(rows);
  setUpSort(table, rows);
  setUpAnswers();
  setUpHistory();
  Promise.all(all(".plot").map(draw)).then(() => { document.documentElement.dataset.charts = "done"; });
})();
