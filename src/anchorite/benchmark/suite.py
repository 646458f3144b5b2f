"""Running benchmarks and putting them into one report."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from anchorite.benchmark.epoch_benchmark import benchmark_epoch
from anchorite.benchmark.growth_benchmark import benchmark_growth
from anchorite.benchmark.loader_benchmark import benchmark_loader
from anchorite.benchmark.loss_benchmark import benchmark_loss
from anchorite.benchmark.machine import BusyMeter, busy_warning, machine
from anchorite.benchmark.predict_benchmark import benchmark_predict
from anchorite.benchmark.results import Outcome, Report
from anchorite.benchmark.settings import Settings
from anchorite.benchmark.step_benchmark import benchmark_step
from anchorite.devices import keep_freed_memory

Listener = Callable[[str], None]


def benchmarks() -> dict[str, Callable[[Settings], Outcome]]:
    """Every benchmark by its name, in the order in which they run."""
    return {
        "loss": benchmark_loss,
        "step": benchmark_step,
        "loader": benchmark_loader,
        "epoch": benchmark_epoch,
        "predict": benchmark_predict,
        "growth": benchmark_growth,
    }


def run_benchmarks(names: Sequence[str], settings: Settings, command: str, listener: Listener = print) -> Report:
    """Run the named benchmarks, one after another; the listener is told what runs."""
    facts = machine(settings.device)
    is_kept = settings.device.type == "cpu" and not settings.plain_memory and keep_freed_memory()
    facts["freed_memory"] = "kept, for ours and the yardsticks alike" if is_kept else "left to the allocator"
    outcomes: list[Outcome] = []
    warnings = ["quick: sizes and rounds are too small to say anything about speed"] if settings.quick else []
    for name in names:
        listener(f"benchmark {name} ...")
        others = BusyMeter()
        outcomes.append(benchmarks()[name](settings))
        busy = others.cores()
        outcomes[-1].facts["cores_used_by_others"] = round(busy, 2)
        warning = busy_warning(busy)
        if warning is not None:
            warnings.append(f"{name}: {warning}")
    return Report(command, facts, tuple(outcomes), tuple(warnings))
