// What scrolls can be scrolled from the keyboard, and what the theme adds to a block of code has a name of its own.
const mend = () => {
  document.querySelectorAll("pre > code, .md-typeset__scrollwrap").forEach((part) => { part.tabIndex = 0; });
  document.querySelectorAll(".md-code__nav").forEach((nav, index) => { nav.setAttribute("aria-label", `Code ${index + 1}`); });
};
new MutationObserver(mend).observe(document.body, { childList: true, subtree: true });
mend();
