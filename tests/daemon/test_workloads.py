"""What pods ask of the rest of the daemon."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from routed.daemon.workloads import Workloads
from routed.errors import StoreError


def test_an_api_that_takes_the_question_and_never_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Said after some seconds, in status too, until it answers again."""
    monkeypatch.setattr("routed.daemon.workloads.API", 0.05)
    answers = asyncio.Event()

    class Api:
        async def get(self, path: str) -> dict[str, str]:
            await answers.wait()
            return {"path": path}

    here: Any = SimpleNamespace(_kubernetes=Api(), _api_problem="")

    async def work() -> None:
        with pytest.raises(StoreError, match="the Kubernetes API has not answered"):
            await Workloads.pod(here, "shop", "web")
        assert "has not answered" in here._api_problem
        answers.set()
        assert await Workloads.pod(here, "shop", "web") == {"path": "/api/v1/namespaces/shop/pods/web"}
        assert here._api_problem == ""

    asyncio.run(work())
