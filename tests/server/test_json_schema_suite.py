"""The JSON Schema Test Suite: of every schema that is accepted all generated documents are valid; the others are
refused clearly. The suite is a part of the source distribution of the `jsonschema` package."""

from __future__ import annotations

import decimal
import json
import os
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator, ValidationError, validators
from octavo import LLM, JsonSchema, SamplingParams
from octavo.errors import InvalidRequestError
from octavo.outputs import RequestOutput

SUITE = os.environ.get("OCTAVO_JSON_SCHEMA_SUITE", "")
# Below this share something that used to be enforced is refused.
LEAST_ACCEPTED = 0.45


def schemas(archive: Path) -> Iterator[tuple[str, Any]]:
    """(name, schema) of draft 2020-12, without the optional parts."""
    with tarfile.open(archive) as tar:
        for member in tar.getmembers():
            parts = Path(member.name).parts
            if "draft2020-12" in parts and "tests" in parts and "optional" not in parts and member.isfile():
                file = tar.extractfile(member)
                assert file is not None
                for group in json.load(file):
                    yield f"{parts[-1]}: {group['description']}", group["schema"]


def exact_multiple(_: Any, divisor: Any, instance: Any, __: Any) -> Iterator[ValidationError]:
    """`multipleOf` in decimal numbers: as floats 38.888 is no multiple of 0.0001."""
    if isinstance(instance, int | float) and not isinstance(instance, bool):
        with decimal.localcontext() as context:
            context.prec = 400
            if decimal.Decimal(str(instance)) % decimal.Decimal(str(divisor)):
                yield ValidationError(f"{instance} is not a multiple of {divisor}")


@pytest.mark.skipif(
    not SUITE,
    reason="OCTAVO_JSON_SCHEMA_SUITE names no source distribution of jsonschema; .ci/run fetches it",
)
def test_json_schema_test_suite(llm: LLM, record_property: Any, capsys: pytest.CaptureFixture[str]) -> None:
    checks = validators.extend(Draft202012Validator, {"multipleOf": exact_multiple})
    accepted, refusals = 0, Counter[str]()
    jobs: list[tuple[str, Any, SamplingParams]] = []
    every = list(schemas(Path(SUITE)))
    for name, schema in every:
        params = SamplingParams(structured=JsonSchema(schema), temperature=1.5, seed=7, n=4, max_tokens=96)
        try:
            # The engine checks and compiles when a request is made.
            llm.generate("a", replace(params, max_tokens=1, n=1), use_tqdm=False)
        except InvalidRequestError as error:
            if not str(error).startswith("structured: "):
                raise
            refusals[str(error).split(":")[2 if "cannot be used" in str(error) else 1].strip()[:40]] += 1
            continue
        accepted += 1
        jobs.append((name, schema, params))
    outputs: list[RequestOutput] = []
    for start in range(0, len(jobs), 64):
        batch = jobs[start : start + 64]
        outputs += llm.generate(["The answer is"] * len(batch), [p for _, _, p in batch], use_tqdm=False)
    documents, wrong = 0, []
    for (name, schema, _), output in zip(jobs, outputs, strict=True):
        validator = checks(schema)
        for sample in output.outputs:
            if sample.finish_reason != "stop":
                continue
            documents += 1
            value = json.loads(sample.text)
            if not validator.is_valid(value):
                wrong.append((name, schema, sample.text))
    with capsys.disabled():
        print(f"\n{len(every)} schemas, {accepted} accepted, {documents} documents, {len(wrong)} of them wrong")
        print(f"refused: {refusals.most_common(12)}")
    record_property("accepted", accepted)
    assert not wrong, wrong[:10]
    assert accepted >= LEAST_ACCEPTED * len(every)
    assert documents > accepted
