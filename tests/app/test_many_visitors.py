"""Twenty visitors at once, half of whom leave: the server answers, one job computes, none is lost.

Each is a client of its own, as a tab is: what a tab draws is tested in test_browser.py.
"""

# The client's answers are typed as anything it might ever return.
# pyright: reportArgumentType=false

import threading
import time
from concurrent.futures import ThreadPoolExecutor

from gradio_client import Client

from sds3d.jobs.states import ACTIVE, FINISHED, State
from sds3d.runs import RunFolder
from sds3d.ui.serve import Served

VISITORS = 20
PROMPT = "a visited mushroom"


def test_twenty_tabs_lose_no_job_and_one_computes_at_a_time(server: Served) -> None:
    # What other tests have made there is told apart by the prompt.
    service = server.desk.service
    together = threading.Barrier(VISITORS)

    def visit(n: int) -> str:
        client = Client(server.url, verbose=False)
        together.wait(60)
        options = {"preset": "fast", "steps": 6, "seed": n}
        job = client.predict(prompt=PROMPT, **options, api_name="/submit")
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
        while len(service.jobs(FINISHED, search=PROMPT)) < VISITORS:
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
        assert RunFolder.open(service.out / folder).verify() == []
