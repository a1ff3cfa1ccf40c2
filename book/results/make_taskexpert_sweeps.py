"""Train the sweeps behind TaskExpert's tables on Dollhouse; write taskexpert_sweeps.json (chapters 10 and 11).

    python book/results/make_taskexpert_sweeps.py table1
    python book/results/make_taskexpert_sweeps.py all --seeds 3 --workers 2

Renders data/dollhouse_64 if it is not there, and trains in runs/taskexpert_sweeps, one thread a run; what is there
already is not made again (sweeps.py). One run takes a minute or two of one core, all of them about an hour. The encoder
is vit_nano_12, whose twelve blocks give TaskExpert as many modules as ViT-B's. The single-task runs behind Δm are
chapter 3's, on the same data with the same budget, but on the shallower vit_nano.
"""

from record import HERE
from sweeps import Configuration, Sweeps, arguments, train_chosen

RECORD = HERE / "taskexpert_sweeps.json"


def taskexpert(**options) -> Configuration:
    """TaskExpert with the options of vit_nano_12 (D = e = 32, h = 8, twelve modules), but for those given."""
    return Configuration("taskexpert", options, runs="taskexpert_sweeps")


FULL = taskexpert()

SWEEPS: Sweeps = {
    # Rows bear the names of the paper's rows.
    "table1": {
        "Baseline": taskexpert(mixture=False, memory=False),
        "w/ MoE": taskexpert(gate="linear", memory=False),
        "w/ MoE+CG": taskexpert(memory=False),
        "w/ MoE+CG+Mem": FULL,
    },
    "table2": {
        "3 MMoE": taskexpert(modules=3),
        "6 MMoE": taskexpert(modules=6),
        "12 MMoE": FULL,
    },
    "figure8": {
        "Top 1": taskexpert(active=1),
        "Top 2": taskexpert(active=2),
        "Dense": FULL,
    },
    # No table of the paper: is it the context, or that the gate is deeper?
    "gates": {
        "linear": taskexpert(gate="linear"),
        "pointwise": taskexpert(gate="pointwise"),
        "context": FULL,
    },
    # No table of the paper: what the momentum starts from.
    "momentum": {
        "0": taskexpert(momentum_start=0.0),
        "0.5": taskexpert(momentum_start=0.5),
        "1": FULL,
    },
    # No table of the paper: its counts pin the size of a module, and leave open how experts (e) and gates (h) share it.
    # The ends and two points between of a line of equal size.
    "widths": {
        "e 4, h 11": taskexpert(expert_width=4, gate_width=11),
        "e 32, h 8": FULL,
        "e 64, h 4": taskexpert(expert_width=64, gate_width=4),
        "e 88, h 1": taskexpert(expert_width=88, gate_width=1),
    },
}


if __name__ == "__main__":
    train_chosen(arguments(__doc__, [*SWEEPS, "all"]), RECORD, SWEEPS)
