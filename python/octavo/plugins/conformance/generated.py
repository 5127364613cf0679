"""schemathesis against the plugin's own document: whatever is sent to it, no answer is a 5xx."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from octavo.errors import MissingDependencyError
from octavo.plugins.conformance.runner import Result
from octavo.plugins.manifest import Manifest
from octavo.plugins.protocol import invoke_path

EXAMPLES = 25
# A report shows the whole body, unless it is longer.
_SHOWN = 8192


def generated(
    url: str, manifest: Manifest, document: Mapping[str, Any], headers: Mapping[str, str], examples: int = EXAMPLES
) -> list[Result]:
    """Calls each operation without consequences with generated arguments, valid and invalid.

    Args:
        examples: requests of each operation.

    Raises:
        MissingDependencyError: schemathesis is not installed.
    """
    try:
        import schemathesis
    except ImportError:
        raise MissingDependencyError("--generate needs schemathesis: pip install schemathesis") from None
    safe = {
        "/" + invoke_path(entry.major, entry.id)
        for entry in manifest.operations
        if entry.idempotent and not entry.consequential
    }
    paths = {path: item for path, item in document.get("paths", {}).items() if path in safe}
    schema: Any = schemathesis.openapi.from_dict({**document, "paths": paths})
    schema.config.update(base_url=url.rstrip("/"))
    return [_operation(each.ok(), headers, examples) for each in schema.get_all_operations()]


def _operation(operation: Any, headers: Mapping[str, str], examples: int) -> Result:
    from hypothesis import HealthCheck, Phase, given, settings
    from schemathesis import GenerationMode

    failed: list[str] = []

    def send(case: Any) -> None:
        answer = case.call(headers=dict(headers))
        if answer.status_code >= 500 and not failed:
            text = str(case.body)
            cut = f"... ({len(text)} characters)" if len(text) > _SHOWN else ""
            failed.append(f"{answer.status_code} for {text[:_SHOWN]}{cut}")

    strategy = operation.as_strategy(generation_mode=GenerationMode.POSITIVE)
    strategy |= operation.as_strategy(generation_mode=GenerationMode.NEGATIVE)
    run: Any = settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    wrap: Any = given(strategy)
    run(wrap(send))()
    title = f"{operation.path} answers {examples} generated requests without a 5xx"
    return Result(("generated",), title, "fail" if failed else "pass", "".join(failed))
