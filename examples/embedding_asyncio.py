"""octavo in an asyncio program: fifty tasks share one model, some are cancelled midway, nothing is left behind."""

import asyncio
import random

from octavo import LLM, SamplingParams

TASKS = 50
PROMPTS = ["Once upon a time", "One day, a girl", "The cat", "In the morning, the boy"]


async def story(llm: LLM, number: int) -> str:
    """One task: streams an answer; whoever cancels the task ends the request."""
    params = SamplingParams(max_tokens=200, seed=number, ignore_eos=True)
    text = ""
    async for delta in llm.astream(PROMPTS[number % len(PROMPTS)], params):
        text += delta.text
    return text


async def main() -> None:
    """Starts the tasks, cancels every fifth after a moment, and looks at the engine's books."""
    draw = random.Random(0)
    with LLM(max_num_seqs=16) as llm:
        tasks = [asyncio.create_task(story(llm, number)) for number in range(TASKS)]
        await asyncio.sleep(0.05)
        for task in draw.sample(tasks, TASKS // 5):
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        texts = [r for r in results if isinstance(r, str)]
        cancelled = [r for r in results if isinstance(r, asyncio.CancelledError)]
        # A cancelled request leaves at the engine's next step.
        while llm.stats()["requests"]["running"] or llm.stats()["requests"]["waiting"]:
            await asyncio.sleep(0.01)
        stats = llm.stats()

    blocks = stats["blocks"]
    assert len(texts) + len(cancelled) == TASKS, "a task failed"
    assert blocks["live"] == 0, "a KV block is still held"
    assert blocks["free"] + blocks["cached"] == blocks["total"], "a KV block was lost"
    print(f"{len(texts)} finished, {len(cancelled)} cancelled, up to {stats['max_batch']} sequences in a step")
    print(f"all {blocks['total']} KV blocks are free ({blocks['cached']} of them keep a prefix)")


if __name__ == "__main__":
    asyncio.run(main())
