"""Train the hybrids of chapter 20 and their controls on Dollhouse; write hybrids_sweeps.json.

    python book/results/make_hybrids_sweeps.py all --seeds 5 --workers 2

Renders data/dollhouse_64 if it is not there, and trains in runs/hybrids_sweeps, one thread a run; what is there already
is not made again (sweeps.py). One run takes about two minutes of one core.

    python book/results/make_hybrids_sweeps.py pilot --workers 2

trains what was tried before the hypotheses were written down, on scenes of another seed; writes hybrids_pilot.json.
"""

from record import HERE
from sweeps import (
    Configuration,
    Sweeps,
    arguments,
    prepare,
    train,
    train_chosen,
)

RECORD, PILOT = HERE / "hybrids_sweeps.json", HERE / "hybrids_pilot.json"
FILE = "book/part5_full_scale/own_decoders.py"
OTHER_SCENES = "dollhouse --root data/dollhouse_64_pilot --size 64 --difficulty easy --train 400 --val 100 --seed 7"
PILOT_SEEDS = (100, 101)
PILOT_FLAGS = "--root data/dollhouse_64_pilot"


def own(decoder: str, flags: str = "", **options) -> Configuration:
    """A decoder of chapter 20, on MLoRE's recipe."""
    named = f"--model {FILE}:{decoder}_vit_nano {flags}".strip()
    return Configuration("mlore", options, "hybrids_sweeps", named)


def paper(decoder: str, **options) -> Configuration:
    """A decoder of the library, for the pilot."""
    return Configuration(decoder, options, "hybrids_sweeps", PILOT_FLAGS)


SWEEPS: Sweeps = {
    # MLoRE's experts with TaskExpert's memory, no larger than MLoRE; the same without the memory, all else as it was; and
    # with four more experts instead of the memory.
    "memory": {
        "experts with memory": own("ExpertsWithMemory", experts=11),
        "memory taken out": own("ExpertsWithMemory", experts=11, memory=False),
        "more experts instead": own("ExpertsWithMemory", memory=False),
    },
    # MLoRE's experts where TIF has its attention, no larger than TIF, without and with TIF's fusion; and no experts, but
    # wider features, in as many parameters.
    "scales": {
        "experts on scales": own("ExpertsOnScales", fused_scales=0),
        "experts on fused scales": own("ExpertsOnScales", experts=11),
        "no experts, wider": own(
            "ExpertsOnScales",
            fused_scales=0,
            mixture=False,
            high_width=22,
            low_width=48,
        ),
    },
    "parents": {
        "MLoRE": Configuration("mlore", {}, "hybrids_sweeps"),
        "TIF": Configuration("tif", {}, "hybrids_sweeps"),
    },
}


PILOTS: Sweeps = {
    "pilot": {
        "MLoRE": paper("mlore"),
        "TIF": paper("tif"),
        "TIF without modules": paper(
            "tif", fused_scales=0, distilled_scales=0, diffusion="none"
        ),
        "experts with memory": own("ExpertsWithMemory", PILOT_FLAGS),
        "experts on scales": own("ExpertsOnScales", PILOT_FLAGS, fused_scales=0),
        "experts on fused scales": own("ExpertsOnScales", PILOT_FLAGS),
    }
}


def pilot(workers: int) -> None:
    """Train the pilot."""
    prepare(OTHER_SCENES)
    command = "python book/results/make_hybrids_sweeps.py pilot"
    train(PILOT, command, PILOTS, ["pilot"], PILOT_SEEDS, workers, OTHER_SCENES)


if __name__ == "__main__":
    chosen = arguments(__doc__, [*SWEEPS, "all", "pilot"], seeds=5)
    if chosen.sweep == "pilot":
        pilot(chosen.workers)
    else:
        train_chosen(chosen, RECORD, SWEEPS)
