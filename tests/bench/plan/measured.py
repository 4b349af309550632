"""`measured.py SETTING…`: real steps of settings of test_processes.py, in the processes that torchrun starts; prints each one's peaks."""

import json
import sys
from functools import partial
from pathlib import Path


def main():
    sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parent)]
    import numpy as np
    import test_processes as settings
    import torch

    from rankwise.bench.plan import build_training, draw_rows
    from rankwise.engine import processes, sharding
    from rankwise.engine.batch_schedule import GivenBatches

    with processes.joined() as group:
        for name in sys.argv[1:]:
            asked = settings.SETTINGS[name]
            torch.manual_seed(0)
            own = processes.Group(group.number, group.count)
            share = partial(sharding.shard, processes=own, device=torch.device("cpu"))
            training = build_training(asked, own, share if asked.shard else lambda model: None)
            training.rows = draw_rows(asked, settings.LENGTHS)
            training.batches = GivenBatches([np.arange(len(settings.LENGTHS))], 10**6)
            with training.compute.running(training.model):
                training.step()
                with training.memory() as memory:
                    training.step()
            peaks = own.of_all(memory.peak)
            if own.first:
                print(json.dumps({"setting": name, "peaks": peaks, "bytes_sent": own.bytes_sent}))


if __name__ == "__main__":
    main()
