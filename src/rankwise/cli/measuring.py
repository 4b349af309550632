"""The commands `plan` (what fits in memory) and `bench` (how fast training is)."""

from rankwise.bench.config import BenchConfig
from rankwise.cli.app import Json, command, people, print_json
from rankwise.config import PlanConfig


@command
def plan(config: PlanConfig = PlanConfig(), *, json: Json = False) -> None:  # noqa: B008 (frozen)
    """Compute what fits in memory, before anything is trained or downloaded: full fine-tuning, LoRA, adaptive LoRA, and the batch size.

    The plan runs a training step on tensors without values, for the heaviest batch of an epoch.

    Example: rankwise plan --model roberta-base --task qnli --batch-size 16 --memory 8GB
    """
    from rankwise.bench import plan as planning
    from rankwise.cli import plan_view

    with plan_view.PlanProgress(people(json)) as progress:
        result = planning.plan(config, progress)
    plan_view.show(result, people(json))
    if json:
        print_json(result)


@command
def bench(config: BenchConfig = BenchConfig(), *, json: Json = False) -> None:  # noqa: B008 (frozen)
    """Measure training on this machine: rankwise, PEFT + Trainer or TRL, full fine-tuning and the GEMM lower bound.

    Each contender is a process of its own. They take turns, and the table has medians over the turns. The embedded model is
    trained on rows of random tokens, unless --model or --random-weights names another.

    Example: rankwise bench --random-weights roberta-base --lengths qnli --contenders "rankwise lora" "peft lora sdpa"
    """
    from rankwise.bench import measurement, results
    from rankwise.cli.bench_progress import BenchProgress

    with BenchProgress(people(json)) as progress:
        result = measurement.bench(config, progress)
    results.show(result, people(json))
    if json:
        print_json(result)
