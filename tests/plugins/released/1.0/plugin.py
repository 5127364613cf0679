"""A plugin as authors write it for protocol 1.0. This file never changes."""

from __future__ import annotations

from typing import Annotated, Any

from octavo.plugins import Deprecation, Limits, Plugin, ProblemError
from pydantic import BaseModel, Field


class Forecast(BaseModel):
    city: str
    highs: list[float]


def build() -> Plugin:
    plugin = Plugin("weather", version="2.1.0", limits=Limits(body_bytes=4096, timeout_s=5))

    @plugin.operation(since="1.0", aliases={"city": ["town"]})
    def get_forecast(city: str, days: Annotated[int, Field(ge=1, le=7)] = 3) -> Forecast:
        """The highest temperatures of the next days."""
        if city == "nowhere":
            raise ProblemError("unavailable", "no station is there", retry_after=5)
        return Forecast(city=city, highs=[20.0] * days)

    @plugin.operation(since="2.0", consequential=True, deprecated=Deprecation(1_700_000_000, 1_900_000_000))
    async def remind(text: str) -> int:
        """Sends a reminder."""
        return len(text)

    @plugin.convert(major=1, name="get_forecast")
    def forecast_1(place: str) -> dict[str, Any]:
        return {"city": place, "days": 2}

    @forecast_1.result
    def highs(newer: Forecast) -> list[float]:
        return newer.highs

    return plugin
