"""The plugin that most tests of the SDK serve: three majors, a consequential operation, and faults on request."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Annotated, Any

from octavo.plugins import Deprecation, Limits, Plugin, ProblemError, Request
from pydantic import BaseModel, Field


class Day(BaseModel):
    high: float
    low: float


class Forecast(BaseModel):
    city: str
    days: list[Day]


class Place(BaseModel):
    name: str
    inside: Place | None = None


def build(*, fail_is_called: bool = True, **options: Any) -> Plugin:
    """A fresh plugin; `plugin.sent` has what `send` sent.

    `fail_is_called`: whether a conformance test calls `fail`, which it does not if `fail` is consequential.
    """
    options.setdefault("limits", Limits(body_bytes=4096, timeout_s=5))
    plugin = Plugin("weather", version="3.1.0", description="The weather, for tests.", **options)
    plugin.sent = sent = []  # type: ignore[attr-defined]
    plugin.gate = gate = threading.Event()  # type: ignore[attr-defined]

    @plugin.operation(since="1.0", aliases={"city": ["town"]})
    def get_forecast(city: str, days: Annotated[int, Field(ge=1, le=7)] = 3) -> Forecast:
        """The forecast for a city.

        Temperatures are in degrees Celsius.
        """
        return Forecast(city=city, days=[Day(high=20 + i, low=10) for i in range(days)])

    @plugin.operation(since="3.0", consequential=True, aliases={"text": ["body"]})
    async def send(to: str, text: str) -> int:
        """Sends a message. Returns how many were sent."""
        await asyncio.sleep(0)
        sent.append((to, text))
        return len(sent)

    @plugin.operation(since="2.0", deprecated=Deprecation.on("2026-12-01", sunset="2027-06-01", use="get_forecast"))
    def where(place: Place, request: Request) -> str:
        """The innermost place."""
        assert request.method == "POST"
        while place.inside is not None:
            place = place.inside
        return place.name

    @plugin.operation(consequential=not fail_is_called)
    def fail(how: str) -> float:
        """Fails as asked."""
        if how == "busy":
            raise ProblemError("unavailable", "the station is off", retry_after=7)
        if how == "type":
            return "secret-value"  # type: ignore[return-value]
        if how == "nan":
            return float("nan")
        if how == "wait":
            gate.wait(20)
            return 1.0
        raise RuntimeError("secret-value in an exception")

    @plugin.operation()
    async def stall(seconds: float) -> str:
        await asyncio.sleep(seconds)
        sent.append(("stall", "woke"))
        return "woke"

    @plugin.convert(major=2, name="get_forecast")
    def forecast_2(city: str, days: Annotated[int, Field(ge=1, le=14)] = 3) -> dict[str, Any]:
        return {"city": city, "days": days}

    @plugin.convert(major=1, name="get_weather", to="get_forecast", deprecated=Deprecation(1_700_000_000))
    def weather_1(town: str) -> dict[str, Any]:
        """The highs of three days."""
        return {"city": town, "days": 3}

    @weather_1.result
    def highs(newer: Forecast) -> list[float]:
        return [day.high for day in newer.days]

    return plugin


plugin = build(fail_is_called=False)
app = plugin.asgi_app
wsgi = plugin.wsgi_app


def sleep_until(condition: Any, seconds: float = 20) -> None:
    """Waits until a condition holds, for an event that another thread brings about."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition never held"
        time.sleep(0.002)
