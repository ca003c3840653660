"""Table 5: the survey's comparison of 1 bit, ternary, 8 bit integers and float: metric, size, compression."""

from __future__ import annotations

from functools import partial

from repq_cli.report.cells import NONE, Cell, over_seeds, ratio, result
from repq_cli.report.lines import FLOAT, Entry, entries_of, variant_of
from repq_cli.report.published import PUBLISHED, Figure, figures
from repq_cli.report.runs import Bits
from repq_cli.report.sections import Section
from repq_cli.report.table import Column, Table, TableLine, without_empty_columns
from repq_cli.report.tables.overview import difference_to_fp
from repq_cli.report.tables.published import width_text
from repq_cli.runs.quality import signed
from repq_cli.text import file_size, times

# The papers' methods by ours: of weights, and of activations where those are quantized.
METHODS = {
    ("sign", None): "BinaryConnect",
    ("sign", "sign"): "BNN",
    ("bwn", None): "BWN",
    ("bwn", "sign"): "XNOR-Net",
    ("twn", None): "TWN",
    ("affine", "affine"): "integer-only",
    ("lsq", None): "LSQ",
    ("lsq", "lsq"): "LSQ",
    (None, None): "float",
}


def survey(section: Section) -> list[Table]:
    """Few bits before many; published figures of the same data below."""
    entries = sorted(entries_of(section.lines, share_plain=True), key=lambda entry: (entry.line.model, entry.bits))
    if not section.is_of_classes or not entries:
        return []
    lines = [_line(entry) for entry in entries]
    published = [figure for figure in figures("survey", section.data) if figure.metric == section.metric.name]
    lines += [_published(figure) for figure in published]
    columns, kept = without_empty_columns(_columns(section), lines)
    return [Table("survey", "Few bits against float", section.title, columns, kept, (PUBLISHED,) if published else ())]


def compares_methods(section: Section) -> bool:
    """Whether a section holds what the survey is about: one bit, or another method than LSQ."""
    entries = entries_of(section.lines, share_plain=True)
    return any(entry.bits.weight == 1 or method_name(entry) not in ("LSQ", "float") for entry in entries)


def method_name(entry: Entry) -> str:
    """The paper's name, or ours where it has none."""
    weight = entry.options.get("quant.weight_method") if entry.bits.weight < 32 else None
    act = entry.options.get("quant.act_method") if entry.bits.act < 32 else None
    ours = "/".join(str(name) for name in dict.fromkeys((weight, act)) if name is not None)
    return METHODS.get((weight, act), ours)


def _columns(section: Section) -> list[Column]:
    metric = partial(Column, form=section.form, unit=section.unit, spread=True)
    difference = partial(signed, metric=section.metric.name)
    return [
        *(Column(name) for name in ("Method", "Weights", "Activations", "Model", "Rep", "Mode", "Variant", "Source")),
        metric("FP"),
        metric("Deployed"),
        Column("Δ FP", form=difference, unit=section.unit, spread=True),
        Column("Size", form=file_size, unit="bytes"),
        Column("Compression", form=times, unit="times float32"),
    ]


def _line(entry: Entry) -> TableLine:
    size = over_seeds(entry.seeds, "size.bytes_packed")
    model, rep, _, mode, _ = entry.texts_of_net
    return (
        method_name(entry),
        *_widths(entry.bits),
        model,
        rep,
        mode,
        variant_of(entry.options, entry.line.varying, with_method=False),
        "",
        over_seeds(entry.seeds, "metric.fp"),
        result(entry.seeds, "metric.deployed"),
        difference_to_fp(entry),
        size,
        ratio(over_seeds(entry.seeds, "size.bytes_fp32"), size),
    )


def _widths(bits: tuple[int | None, int | None]) -> tuple[str, str]:
    return width_text(bits[0]), width_text(bits[1])


def _published(figure: Figure) -> TableLine:
    texts = (figure.model, "", "", "", figure.source)
    value = Cell(figure.value, status="done")
    widths = _widths((figure.weight_bits, figure.act_bits))
    is_fp = Bits(figure.weight_bits or 0, figure.act_bits or 0) == FLOAT
    cells = (value, NONE) if is_fp else (NONE, value)
    return ("float" if is_fp else figure.method, *widths, *texts, *cells, NONE, NONE, NONE)
