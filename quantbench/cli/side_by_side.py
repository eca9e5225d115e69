"""A contrast as text for a terminal, as Markdown and as data. Model output is untrusted and always escaped."""

from __future__ import annotations

import re
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

from quantbench.cli.output import paragraph
from quantbench.core.record import Output
from quantbench.core.text import escape_markdown, one_line, visible
from quantbench.core.units import short, with_interval
from quantbench.judge.contrast import BLOCK_POSITIONS, AnswerPair, Contrast
from quantbench.judge.contrast.sentence import conclusion
from quantbench.tables.render import as_markdown, as_text, terminal_width, wrap
from quantbench.tables.table import Cell, Heading, Table

if TYPE_CHECKING:
    from rich.text import Text

MARK = "▶"
_NEWLINE = "↵"
_MARKDOWN_WIDTH = 110
"""Columns of a text block in Markdown, where no terminal sets a width."""
_NARROWEST = 24
"""Least width of a text column, in terminal cells."""


def render(contrast: Contrast, form: Literal["text", "md"]) -> str:
    """The sentence, the figures of each prompt, and the texts side by side with a mark where they first differ."""
    if form == "text":
        blocks = [_block(contrast, pair, terminal_width(), styled=sys.stdout.isatty()) for pair in contrast.pairs]
        heads = ["\n".join(wrap(_heading(contrast, pair), terminal_width())) for pair in contrast.pairs]
        texts = [f"{head}\n\n{block}" for head, block in zip(heads, blocks, strict=True)]
        opening = paragraph(one_line(conclusion(contrast)))
        return "\n\n".join([opening, as_text([_figures(contrast)]).rstrip("\n"), *texts])
    parts = [escape_markdown(conclusion(contrast)), as_markdown([_figures(contrast)]).rstrip("\n")]
    for pair in contrast.pairs:
        block = _block(contrast, pair, _MARKDOWN_WIDTH, styled=False)
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", block)), default=0))
        parts += [f"#### {escape_markdown(_heading(contrast, pair))}", f"{fence}text\n{block}\n{fence}"]
    return "\n\n".join(parts)


def as_data(contrast: Contrast) -> dict[str, Any]:
    """The sentence and everything behind it; KLD in nats, p values within prompts Holm-corrected as ``p_adjusted``."""
    distances = contrast.distances
    return {
        "sentence": conclusion(contrast),
        **asdict(contrast.about),
        "unscored": None if distances else contrast.about.unscored,
        "verdict": contrast.verdict,
        "distances": {"first": asdict(distances[0]), "second": asdict(distances[1])} if distances else None,
        "kld_difference": asdict(contrast.kld) if contrast.kld else None,
        "median_parting_tokens": contrast.median_parting,
        "prompts_compared": [_pair_data(pair) for pair in contrast.pairs],
    }


def _pair_data(pair: AnswerPair) -> dict[str, Any]:
    prompted = pair.first
    return {
        "index": prompted.index,
        "prompt": prompted.prompt,
        "prompt_tokens": prompted.prompt_tokens,
        "reference": {"text": prompted.reference_text, "tokens": prompted.reference_tokens},
        "first": _answer_data(pair.first),
        "second": _answer_data(pair.second),
        "same": pair.same,
        "parts_at_token": pair.parts_at_token,
        "parts_at_character": pair.parts_at_character,
        "first_had_left_reference": pair.left(pair.first) if pair.parts_at_token is not None else None,
        "second_had_left_reference": pair.left(pair.second) if pair.parts_at_token is not None else None,
        "chrf_between": pair.chrf,
        "kld_difference": {**asdict(pair.kld), "p_adjusted": pair.p_adjusted} if pair.kld else None,
        "verdict": pair.verdict,
    }


def _answer_data(output: Output) -> dict[str, Any]:
    return {
        "text": output.variant_text,
        "tokens": output.variant_tokens,
        "exact_match": output.exact_match,
        "first_divergence": output.first_divergence,
        "token_match": output.token_match,
        "chrf": output.chrf,
        "scored_tokens": output.scored_tokens,
        "kld_mean": output.kld_mean,
        "top1_agreement": output.top1_agreement,
        "nll_mean": output.nll_mean,
    }


def _figures(contrast: Contrast) -> Table:
    """The figures of each prompt as a table."""
    about = contrast.about
    titles = {
        "prompt": "Prompt",
        "parts_at_token": "Equal\ntokens",
        "chrf_first": f"chrF\n{about.first}",
        "chrf_second": f"chrF\n{about.second}",
        "chrf_between": "chrF\nbetween",
        "top1_first": f"Top-1\n{about.first}",
        "top1_second": f"Top-1\n{about.second}",
        "kld_first": f"KLD, nats\n{about.first}",
        "kld_second": f"KLD, nats\n{about.second}",
        "kld_difference": "Difference, nats\n(95 % interval)",
        "p_adjusted": "p\n(Holm)",
        "verdict": "Further from\nreference",
    }
    return Table(
        name="contrast",
        title=f"Prompt by prompt: {about.model}, prompts {about.prompts}",
        facts={"model": about.model, "prompts": about.prompts, "reference": about.reference, "run_id": about.run_id},
        caption=f"{about.first} and {about.second} against {about.reference}; run {about.run_id}",
        headings=tuple(Heading(key=key, title=title, numeric=key != "verdict") for key, title in titles.items()),
        rows=tuple(_row(contrast, pair) for pair in contrast.pairs),
        notes=tuple(_notes(contrast)),
    )


def _row(contrast: Contrast, pair: AnswerPair) -> tuple[Cell, ...]:
    kld = pair.kld
    first, second = pair.first, pair.second
    return (
        Cell(first.index + 1),
        Cell("all") if pair.same else Cell(pair.parts_at_token),
        *(Cell.of(chrf, "{:.1f}".format) for chrf in (first.chrf, second.chrf, pair.chrf)),
        *(Cell.of(each.top1_agreement, "{:.1%}".format) for each in (first, second)),
        *(Cell.of(each.kld_mean, short) for each in (first, second)),
        Cell(kld.mean, with_interval(kld.mean, kld.low, kld.high, show=short)) if kld else Cell(None),
        Cell.of(pair.p_adjusted, short),
        Cell(pair.verdict, _verdict(contrast, pair)),
    )


def _verdict(contrast: Contrast, pair: AnswerPair) -> str:
    match pair.verdict:
        case "first further":
            return contrast.about.first
        case "second further":
            return contrast.about.second
        case "no difference":
            assert pair.kld is not None
            return f"no difference (MDE {short(pair.kld.mde)})"
    return pair.verdict


def _notes(contrast: Contrast) -> list[str]:
    about = contrast.about
    tested = sum(pair.p_adjusted is not None for pair in contrast.pairs)
    notes = [
        f"equal tokens: before the greedy answers diverge; {MARK} marks where the texts first differ, {_NEWLINE} a newline",
        f"chrF and top-1 are against {about.reference}; chrF between compares the two answers",
    ]
    if tested:
        notes.append(
            f"difference: KLD of {about.first} minus that of {about.second}, paired by position, in blocks of at least "
            f"{BLOCK_POSITIONS} consecutive positions; p is from a t test on these, Holm-corrected for {tested} prompts"
        )
    if any(pair.verdict == "no difference" for pair in contrast.pairs):
        notes.append(
            "no difference: none found; one of the minimum detectable effect (MDE, in nats) is found four times in five"
        )
    if any(pair.verdict == "not tested" for pair in contrast.pairs):
        notes.append(f"not tested: no KLD, or fewer than {2 * BLOCK_POSITIONS} positions")
    if contrast.kld and contrast.kld.few_clusters:
        notes.append(f"over all prompts: a t test on {contrast.kld.clusters} prompts, which is few (fewer than 30)")
    return notes


def _heading(contrast: Contrast, pair: AnswerPair) -> str:
    number = f"Prompt {pair.first.index + 1}"
    if pair.same:
        return f"{number}: the same answer"
    if pair.parts_at_token is None:
        return f"{number}: character {(pair.parts_at_character or 0) + 1} is the first to differ"
    about = contrast.about
    left = [name for name, answer in ((about.first, pair.first), (about.second, pair.second)) if pair.left(answer)]
    texts = "" if pair.parts_at_character is not None else "; the texts are the same"
    where = f"token {pair.parts_at_token + 1} is the first to differ"
    return f"{number}: {where}, where {' and '.join(left)} had left {about.reference}'s answer{texts}"


def _block(contrast: Contrast, pair: AnswerPair, width: int, *, styled: bool) -> str:
    """Prompt and reference above the two answers in columns of half the width each."""
    from rich.console import Console
    from rich.table import Table as Grid
    from rich.text import Text

    about = contrast.about
    above = Grid.grid(padding=(0, 2, 0, 0))
    above.add_column(no_wrap=True)
    above.add_column(overflow="fold", max_width=max(width - len(about.reference) - 2, _NARROWEST))
    above.add_row(Text("prompt"), Text(shown(pair.first.prompt)))
    above.add_row(Text(about.reference), Text(shown(pair.first.reference_text)))
    half = max((width - 3) // 2, _NARROWEST)
    beside = Grid.grid(padding=(0, 3, 0, 0))
    beside.add_column(width=half, overflow="fold")
    beside.add_column(width=half, overflow="fold")
    beside.add_row(Text(about.first, style="bold"), Text(about.second, style="bold"))
    beside.add_row(*(_marked(each.variant_text, pair.parts_at_character) for each in (pair.first, pair.second)))
    console = Console(width=max(width, 2 * half + 3), color_system="standard" if styled else None, force_terminal=styled)
    with console.capture() as captured:
        console.print(above)
        console.print()
        console.print(beside)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def _marked(text: str, at: int | None) -> Text:
    """``text`` with a mark before the character at index ``at``."""
    from rich.text import Text

    if at is None:
        return Text(shown(text))
    return Text.assemble(_signed(text[:at]), (MARK, "bold red"), shown(text[at:]))


def shown(text: str) -> str:
    """``text`` with visible newlines, and no empty line after the last one."""
    return _signed(text).removesuffix("\n")


def _signed(text: str) -> str:
    """``text`` with a visible sign at each newline."""
    return visible(text).replace("\n", f"{_NEWLINE}\n")
