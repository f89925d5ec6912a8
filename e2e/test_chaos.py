"""Every kind of fault at random moments, under load, for a while."""

import os
import random
import signal
from pathlib import Path

import pytest
from conftest import Own
from harness.fabric import QUICK
from harness.load import Load
from harness.process import Process
from importable_zoo import nap_then

SEED = int(os.environ.get("E2E_SEED") or random.SystemRandom().randrange(1 << 32))
FAULTS = int(os.environ.get("E2E_FAULTS") or 12)


@pytest.mark.parametrize("mode", ["push", "pull", "mixed"])
def test_chaos(own: Own, mode: str, tmp_path: Path) -> None:
    """Each acknowledged task ends once, with its own value; none runs more often than faults explain."""
    print(f"E2E_SEED={SEED} E2E_FAULTS={FAULTS} repeats the schedule")
    dice = random.Random(f"{SEED}/{mode}")
    fabric = own.up(*QUICK, "--max-retries", "50", slots=1 if mode == "mixed" else 0)

    def add_worker() -> None:
        fabric.worker(dice.choice(["push", "pull"]) if mode == "mixed" else mode, slots=2, wait=False)

    def living() -> Process:
        return dice.choice([w for w in fabric.workers if w.running])

    for _ in range(3):
        add_worker()
    load = Load(fabric.v1, tmp_path / "load")
    lost = 0
    try:
        for _ in range(FAULTS):
            load.go_on(dice.randint(5, 25))
            fault = dice.choice(["kill worker", "drain worker", "freeze worker", "kill up", "drain up"])
            if fault == "kill worker":
                living().kill()
                lost += 2
                add_worker()
            elif fault == "drain worker":
                leaving = living()
                leaving.signal(signal.SIGTERM)
                assert leaving.exit_code() == 0
                add_worker()
            elif fault == "freeze worker":
                frozen = living()
                frozen.signal(signal.SIGSTOP)
                load.go_on(dice.choice([5, 120]))
                frozen.signal(signal.SIGCONT)
                lost += 2
            else:
                if fault == "kill up":
                    fabric.up.kill()
                    lost += 1
                else:
                    fabric.up.signal(signal.SIGTERM)
                    assert fabric.up.exit_code() == 0
                fabric.restart()
    finally:
        load.stop()
    executions = load.check()
    again = sum(executions.values()) - len(executions)
    assert again <= lost, f"{again} executions too many, at most {lost} explained by faults"
    assert fabric.v1.value(fabric.v1.submit(nap_then, 0, 1)) == 1
    assert fabric.v1.get("/v1/queues")["queues"] == []
