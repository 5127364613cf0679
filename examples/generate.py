"""The shortest program: no model to download, no GPU."""

from octavo import LLM, SamplingParams

with LLM() as llm:
    for output in llm.generate(["Once upon a time", "One day, a boy"], SamplingParams(max_tokens=64)):
        print(output.prompt, output.text)
