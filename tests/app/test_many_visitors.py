"""Twenty visitors at once, half of whom leave: the server answers, one job computes, none is lost.

Each is a client of its own, as a tab is: what a tab draws is tested in test_browser.py.
"""

# The client's answers are typed as anything it might ever return.
# pyright: reportArgumentType=false

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

from gradio_client import Client

from sds3d.jobs.states import ACTIVE, FINISHED, State
from sds3d.runs import RunFolder
from sds3d.ui.serve import Served

VISITORS = 20


def test_twenty_tabs_lose_no_job_and_one_computes_at_a_time(
    serve: Callable[..., AbstractContextManager[Served]], tmp_path: Path
) -> None:
    with serve(tmp_path) as served:
        service = served.desk.service
        together = threading.Barrier(VISITORS)

        def visit(n: int) -> str:
            client = Client(served.url, verbose=False)
            together.wait(60)
            options = {"preset": "fast", "steps": 6, "seed": n}
            job = client.predict(prompt="a red mushroom", **options, api_name="/submit")
            if n % 2:
                # Closed, whatever becomes of it.
                client.close()
                return job
            while not (status := client.predict(job, api_name="/status"))["finished"]:
                time.sleep(0.2)
            assert status["state"] == "done"
            client.close()
            return job

        most_active, workers = 0, set()
        with ThreadPoolExecutor(VISITORS) as pool:
            visits = [pool.submit(visit, n) for n in range(VISITORS)]
            deadline = time.monotonic() + 120
            while service.store.count(FINISHED) < VISITORS:
                assert time.monotonic() < deadline, [job.state for job in service.jobs()]
                most_active = max(most_active, service.store.count(ACTIVE))
                workers |= {row.name for row in service.store.workers()}
                time.sleep(0.02)
            ids = {visited.result() for visited in visits}
        assert len(ids) == VISITORS
        jobs = [service.get(job_id) for job_id in ids]
        assert {job.state for job in jobs} == {State.DONE}
        assert (most_active, len(workers)) == (1, 1)
        folders = {job.folder for job in jobs}
        assert len(folders) == VISITORS
        for folder in folders:
            assert folder is not None
            assert RunFolder.open(tmp_path / folder).verify() == []
