"""An inspection in words: a summary for the terminal, and the whole list for a file."""

from __future__ import annotations

from collections.abc import Iterable

from anchorite.inspect.anchors import AnchorFit
from anchorite.inspect.doctor import Inspection
from anchorite.inspect.findings import KINDS, SEVERITIES, Finding, Severity
from anchorite.reading import one_line

_SHOWN_OF_A_KIND = 3
_MOST_CLASSES = 30
_TITLES: dict[Severity, str] = {
    "error": "ERRORS: lost without a word, refused by training, or a score that proves nothing",
    "warning": "WARNINGS: trained on as it stands, probably not as meant",
    "note": "NOTES",
}


def summary_text(inspection: Inspection) -> str:
    """Counts, class balance, boxes against anchors, and of each kind of finding the first three.

    Paths count from the dataset's folder.
    """
    root = inspection.dataset.root
    folder = root if root.is_dir() else root.parent
    return _text(inspection, _SHOWN_OF_A_KIND).replace(f" {folder}/", " ")


def report_text(inspection: Inspection) -> str:
    """The same with every finding, and what each kind means for training."""
    return _text(inspection, None)


def _text(inspection: Inspection, most: int | None) -> str:
    dataset = inspection.dataset
    lines = [f"{dataset.root}: {dataset.format}, {_count(len(dataset.class_names), 'class', 'classes')}", ""]
    lines += _balance_lines(inspection, most)
    lines += ["", *_anchor_lines(inspection.anchor_fit)]
    for severity in SEVERITIES:
        found = inspection.of_severity(severity)
        if found:
            lines += ["", _TITLES[severity], *_finding_lines(found, most)]
    if not inspection.findings:
        lines += ["", "Nothing found."]
    if most is None:
        lines += ["", f"Compared: {inspection.search}.", f"Fingerprint of the labels: {inspection.label_fingerprint}"]
        lines += [f"Fingerprint of the images: {inspection.image_fingerprint}"]
    return "\n".join(one_line(line) for line in lines) + "\n"


def _balance_lines(inspection: Inspection, most: int | None) -> list[str]:
    balances = inspection.balances
    rows: list[tuple[str, list[str]]] = [
        ("", [counts.split for counts in balances]),
        ("images", [str(counts.images) for counts in balances]),
        ("without a box", [str(counts.empty_images) for counts in balances]),
        ("boxes", [str(counts.boxes) for counts in balances]),
        ("an image, mean", [f"{counts.boxes / counts.images:.1f}" if counts.images else "-" for counts in balances]),
        ("an image, most", [str(counts.most_boxes) for counts in balances]),
    ]
    if any(counts.ignored for counts in balances):
        rows.append(("crowd, difficult", [str(counts.ignored) for counts in balances]))
    names = inspection.dataset.class_names
    shown = names if most is None else names[:_MOST_CLASSES]
    for number, name in enumerate(shown):
        cells = []
        for counts in balances:
            share = f" ({counts.boxes_per_class[number] / counts.boxes:.0%})" if counts.boxes else ""
            cells.append(f"{counts.boxes_per_class[number]}{share}")
        rows.append((name, cells))
    first = min(32, max(len(title) for title, _ in rows)) + 2
    widths = [max(len(cells[column]) for _, cells in rows) + 3 for column in range(len(balances))]
    lines = [
        f"{title:<{first}}" + "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
        for title, cells in rows
    ]
    return lines if len(shown) == len(names) else [*lines, f"and {len(names) - len(shown)} classes more"]


def _anchor_lines(fit: AnchorFit) -> list[str]:
    if fit.width_quantiles is None or fit.height_quantiles is None:
        return [f"No training box to hold against the anchors at {fit.image_size} px."]
    widths, heights = (
        " / ".join(f"{side:.0f}" for side in sides) for sides in (fit.width_quantiles, fit.height_quantiles)
    )
    levels = ", ".join(
        f"{_share(recall)} at stride {stride}" for stride, recall in zip(fit.strides, fit.level_recalls, strict=True)
    )
    lines = [
        f"Training boxes at {fit.image_size} px: width {widths}, height {heights} px (5 %, median, 95 %)",
        f"Boxes that an anchor matches (best possible recall): {_share(fit.recall)}; {levels}",
    ]
    if fit.recall < 1 and fit.fitted_recall is not None:
        lines.append(f"With anchors fitted to the data: {_share(fit.fitted_recall)}")
    return lines


def _share(share: float) -> str:
    """A share in per cent that reads 100 only where nothing is missing."""
    return "100%" if share == 1 else f"{min(share, 0.9999):.2%}"


def _finding_lines(found: Iterable[Finding], most: int | None) -> Iterable[str]:
    by_kind: dict[str, list[Finding]] = {}
    for finding in found:
        by_kind.setdefault(finding.kind, []).append(finding)
    for kind, findings in by_kind.items():
        yield f"  {len(findings):>5}  {kind}: {KINDS[kind].heading} [{KINDS[kind].fate}]"
        for finding in findings[:most]:
            yield f"         {finding.line()}"
        if most is not None and len(findings) > most:
            yield f"         and {len(findings) - most} more"


def _count(number: int, one: str, several: str) -> str:
    return f"{number} {one if number == 1 else several}"
