"""The page, the plots, and whether what must show does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

HERE = Path(__file__).parents[1]
RESULT = HERE / "results" / "gpu.json"
PAGE = HERE / "gpu.md"
PLOT = HERE / "results" / "gpu.png"
MARK = "<!-- written by benchmarks.gpu below this line -->"


def of_section(results: dict[str, Any], section: str) -> list[dict[str, Any]]:
    return [row for row in results["rows"] if row["section"] == section]


def timed(results: dict[str, Any], section: str) -> dict[str, dict[str, Any]]:
    """By name, the rows that have times."""
    return {row["name"]: row for row in of_section(results, section) if "forward_ms" in row}


def wrong(results: dict[str, Any]) -> list[str]:
    """Checks that failed, the tuned kernels' included. A check that could not run is wrong, one left out is not."""
    checks = [*of_section(results, "correctness"), *of_section(results, "sparse")]
    names = [row["name"] for row in checks if not row.get("correct") and not row.get("left_out")]
    tuned = [(row, row["tuned"]) for row in results["rows"] if "tuned" in row]
    return names + [f"tuned {row['section']} {row['name']}" for row, check in tuned if not check["correct"]]


def targets_met(results: dict[str, Any]) -> list[tuple[str, str, bool | None]]:
    """(what must show, what was measured, whether it does); None where it was not measured."""
    ceiling = ceilings(results)
    matmul, copy = ceiling["matmul_tflops"], ceiling["copy_gb_s"]
    rows, meta = timed(results, "attention"), timed(results, "meta")
    met: list[tuple[str, str, bool | None]] = []

    def add(what: str, values: list[float], least: float, unit: str = "") -> None:
        values = [value for value in values if value == value]
        text = f"{min(values):.2f}{unit} to {max(values):.2f}{unit}" if values else "not measured"
        met.append((what, text, min(values) >= least if values else None))

    long = [rows[f"causal N={n}"] for n in (4096, 8192, 16384) if f"causal N={n}" in rows]
    add("forward >= 60 % of matmul, D 128, N >= 4096 causal", [r["forward_tflops"] / matmul for r in long], 0.6)
    add("backward >= 50 % of matmul, D 128, N >= 4096 causal", [r["backward_tflops"] / matmul for r in long], 0.5)
    for way in ("forward", "backward"):
        ratios = {name: row[f"{way}_ms"] / rows[name][f"{way}_ms"] for name, row in meta.items() if name in rows}
        own = [ratio for name, ratio in ratios.items() if "K=1024" not in name]
        add(f">= 1.3x Meta's Triton, {way}, at its shapes", own, 1.3, "x")
        add(f">= 2x Meta's Triton, {way}, at K = 1024", [r for name, r in ratios.items() if "K=1024" in name], 2.0, "x")
    by_k = [rows[f"mtgr K={k} H2 D256"]["forward_ms"] for k in (32, 300, 1024) if f"mtgr K={k} H2 D256" in rows]
    if len(by_k) == 3:
        slopes = ((by_k[1] - by_k[0]) / 268, (by_k[2] - by_k[1]) / 724)
        met.append(
            (
                "time linear in K: second slope / first within 1.25",
                f"{slopes[1] / slopes[0]:.2f}",
                slopes[1] <= 1.25 * slopes[0],
            )
        )
    else:
        met.append(("time linear in K", "not measured", None))
    pointwise = [row for row in of_section(results, "pointwise") if "forward_gb_s" in row]
    for direction in ("forward", "backward"):
        shares = [row[f"{direction}_gb_s"] / copy for row in pointwise]
        add(f"GLN and norm-gate {direction} >= 85 % of copy bandwidth", shares, 0.85)
    return met


def ceilings(results: dict[str, Any]) -> dict[str, float]:
    """NaN where they could not be measured: nothing is then shown to hold."""
    found = of_section(results, "ceilings")
    return {key: found[0].get(key, float("nan")) if found else float("nan") for key in ("matmul_tflops", "copy_gb_s")}


def page(results: dict[str, Any]) -> str:
    lines = [
        f"Measured on {results['gpu']}, torch {results['torch']}, triton {results['triton']}, {results['date']}.",
        "",
    ]
    ceiling = ceilings(results)
    lines += [
        f"Ceilings in this run: matrix product {ceiling['matmul_tflops']} TFLOPS, copy {ceiling['copy_gb_s']} GB/s.",
        "",
    ]
    lines += ["| must show | measured | |", "|---|---|---|"]
    lines += [f"| {w} | {t} | {'-' if ok is None else 'yes' if ok else 'NO'} |" for w, t, ok in targets_met(results)]
    bad = wrong(results)
    checks = len(of_section(results, "correctness")) + sum("tuned" in row for row in results["rows"])
    lines += ["", f"Correctness: {checks} checks; {'wrong: ' + ', '.join(bad) if bad else 'all right'}."]
    heads = (
        "attention | forward ms | TFLOPS | % matmul | backward ms | TFLOPS | % matmul | Meta fwd, bwd | Flex fwd, bwd"
    )
    lines += ["", f"| {heads} |", "|---|---|---|---|---|---|---|---|---|"]
    for row in of_section(results, "attention"):
        lines.append(attention_line(results, row, ceiling["matmul_tflops"]))
    lines += order_lines(results) + step_lines(results) + busy_lines(results) + first_step_lines(results)
    lines += ["", "| by TMA | forward ms | TFLOPS | backward ms | TFLOPS |", "|---|---|---|---|---|"]
    for row in of_section(results, "tma"):
        cells = [row.get(f"{way}_{what}", "-") for way in ("forward", "backward") for what in ("ms", "tflops")]
        lines.append(f"| {row['name']} | " + " | ".join(map(str, cells)) + f" {row.get('error', '')} |")
    lines += ["", "| pointwise | forward GB/s | of copy | backward GB/s | of copy |", "|---|---|---|---|---|"]
    for row in of_section(results, "pointwise"):
        rates = [row.get(f"{way}_gb_s") for way in ("forward", "backward")]
        cells = [f"{rate} | {rate / ceiling['copy_gb_s']:.0%}" if rate else "- | -" for rate in rates]
        lines.append(f"| {row['name']} | " + " | ".join(cells) + f" {row.get('error', '')} |")
    return "\n".join([*lines, ""])


def attention_line(results: dict[str, Any], row: dict[str, Any], matmul: float) -> str:
    name, cells = row["name"], []
    if "forward_ms" not in row:
        return f"| {name} | {row.get('error') or row.get('left_out')} | | | | | | | |"
    for way in ("forward", "backward"):
        rate = row[f"{way}_tflops"]
        cells += [f"{row[f'{way}_ms']:.3f}", f"{rate:.0f}", f"{100 * rate / matmul:.0f}"]
    for section in ("meta", "flex"):
        peer = next((peer for peer in of_section(results, section) if peer["name"] == name), {})
        if "forward_ms" in peer:
            ratios = [peer[f"{way}_ms"] / row[f"{way}_ms"] for way in ("forward", "backward")]
            cells.append(", ".join(f"{ratio:.2f}x" for ratio in ratios))
        else:
            cells.append(peer.get("error") or peer.get("left_out") or "-")
    return "| " + " | ".join([name, *cells]) + " |"


def order_lines(results: dict[str, Any]) -> list[str]:
    """The order of units, beside the heaviest of the whole batch first; and the kernels for sm_90 beside the usual ones."""
    lines = []
    for section, title in (("order", "order of units"), ("gluon", "kernels for sm_90")):
        lines += ["", f"| {title} | forward ms | before | ratio | backward ms | before | ratio |", "|---" * 7 + "|"]
        for row in of_section(results, section):
            if "forward_ms" not in row:
                lines.append(f"| {row['name']} | {row.get('error') or row.get('left_out')} | | | | | |")
                continue
            pairs = [(row[f"{way}_ms"], row["before"][f"{way}_ms"]) for way in ("forward", "backward")]
            cells = [f"{now:.3f} | {before:.3f} | {before / now:.2f}x" for now, before in pairs]
            lines.append(f"| {row['name']} | " + " | ".join(cells) + " |")
    return lines


BUSY = {
    "shapes": ("the field's shapes, encoder", ("forward_ms", "step_ms", "tokens_per_s", "mfu", "published_ms")),
    "shapes anchors": (
        "supervised positions a second",
        ("listen_anchors_per_s", "day_anchors_per_s", "ratio", "listen_tokens", "day_tokens"),
    ),
    "shapes attention": ("their attention alone", ("forward_ms", "forward_tflops", "backward_ms", "backward_tflops")),
    "shapes meta": ("Meta's attention", ("forward_ms", "forward_tflops", "backward_ms", "backward_tflops")),
    "sparse": ("sparse optimizer", ("entries", "largest_row", "ms", "pytorch_ms", "gb_s")),
    "reading": ("reading alone", ("batches", "ms", "tokens_per_s")),
    "autodis": (
        "AutoDis, and by PyTorch's operations",
        ("forward_ms", "apart_forward_ms", "backward_ms", "apart_backward_ms", "difference"),
    ),
    "lookups": ("features to tokens and back", ("merged_ms", "vocabularies_wait_ms", "apart_ms", "difference")),
    "vocabulary": ("a dynamic vocabulary alone", ("ids", "ms", "waiting_ms")),
    "training": ("`genrank train`", ("step_ms", "input_wait", "tokens_per_s", "mfu", "cores_to_read")),
    "training step": ("a step of `genrank train`, without reading", ("ms", "idle", "tokens_per_s", "first_s", "loss")),
    "block": (
        "pieces of the block, and apart",
        ("forward_ms", "apart_forward_ms", "backward_ms", "apart_backward_ms", "difference"),
    ),
}


def busy_lines(results: dict[str, Any]) -> list[str]:
    """The field's shapes, the sparse optimizer, reading, lookups, training with them, and pieces of the block."""
    lines = []
    for section, (title, keys) in BUSY.items():
        lines += ["", f"| {title} | {' | '.join(keys)} |", "|---" * (len(keys) + 1) + "|"]
        for row in of_section(results, section):
            cells = [str(row.get(key, "-")) for key in keys]
            if not any(key in row for key in keys):
                cells[0] = str(row.get("error") or row.get("left_out") or "-")
            lines.append(f"| {row['name']} | {' | '.join(cells)} |")
    return lines


def first_step_lines(results: dict[str, Any]) -> list[str]:
    """Seconds until a process has taken its first step."""
    lines = ["", "| first step of a process, s | nothing cached | compiled before | and tuned |", "|---|---|---|---|"]
    for row in of_section(results, "first step"):
        cells = [str(row.get(key, "-")) for key in ("cold_s", "compiled_s", "tuned_s")]
        lines.append(f"| {row['name']} | " + " | ".join(cells) + f" {row.get('error') or row.get('left_out') or ''} |")
    return lines


PARTS = ("attention", "matrix products", "norm and gate", "pointwise", "optimizer and clipping", "idle")


def step_lines(results: dict[str, Any]) -> list[str]:
    """A training step and its peers; then where its time goes."""
    rates = "ms | tokens/s | candidates/s | MFU | peak GB | dense, compiled | FlexAttention, compiled"
    lines = ["", f"| training step | {rates} |", "|---|---|---|---|---|---|---|---|"]
    split = ["", f"| share of the step | {' | '.join(PARTS)} |", "|---" * (len(PARTS) + 1) + "|"]
    for row in of_section(results, "step"):
        if "step_ms" not in row:
            lines.append(f"| {row['name']} | {row.get('error') or row.get('left_out')} | | | | | | |")
            continue
        cells = [row.get(key, "-") for key in ("step_ms", "tokens_per_s", "candidates_per_s", "mfu", "peak_gb")]
        for peer in ("step dense", "step flex"):
            there = next((other for other in of_section(results, peer) if other["name"] == row["name"]), {})
            ratio = f"{there['step_ms'] / row['step_ms']:.2f}x" if "step_ms" in there else None
            cells.append(ratio or there.get("error") or there.get("left_out") or "-")
        lines.append("| " + " | ".join(map(str, [row["name"], *cells])) + " |")
        if "parts" in row:
            split.append("| " + " | ".join([row["name"], *(f"{row['parts'][part]:.0%}" for part in PARTS)]) + " |")
    return lines + split if len(split) > 3 else lines


def plot(results: dict[str, Any]) -> None:
    try:
        import matplotlib
    except ImportError:
        print("matplotlib is not installed: no plot")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    sections = {"attention": "genrank", "meta": "Meta's Triton", "flex": "FlexAttention"}
    names = list(timed(results, "attention"))
    if not names:
        return
    figure, axes = pyplot.subplots(1, 2, figsize=(14, 0.4 * len(names) + 2), sharey=True)
    for axis, way in zip(axes, ("forward", "backward"), strict=True):
        for shift, (section, who) in enumerate(sections.items()):
            rows = timed(results, section)
            at = [i + 0.27 * (shift - 1) for i, name in enumerate(names) if name in rows]
            axis.barh(at, [rows[name][f"{way}_tflops"] for name in names if name in rows], height=0.25, label=who)
        axis.axvline(ceilings(results)["matmul_tflops"], color="black", linestyle=":", label="matrix product")
        axis.set_title(f"{way}, TFLOPS over visible pairs")
        axis.set_yticks(range(len(names)), names)
    axes[0].invert_yaxis()  # The axes share it.
    axes[1].legend()
    figure.tight_layout()
    figure.savefig(PLOT, dpi=110)
    pyplot.close(figure)
