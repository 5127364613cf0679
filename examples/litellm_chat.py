"""LiteLLM on a running `octavo serve`: octavo beside any other provider, with the same calls.

pip install litellm 'octavo[server]'
octavo serve & python examples/litellm_chat.py [URL]
"""

import os
import sys

import litellm

server = {
    # "openai/" tells LiteLLM which protocol the server speaks.
    "model": "openai/octavo-embedded",
    "api_base": (sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000") + "/v1",
    "api_key": os.environ.get("OCTAVO_API_KEY", "not needed"),
}
turns = [{"role": "user", "content": "Who are you?"}]

answer = litellm.completion(messages=turns, temperature=0, max_tokens=64, **server)
print("answer:", answer.choices[0].message.content)

print("stream: ", end="")
for chunk in litellm.completion(messages=turns, temperature=0, max_tokens=64, stream=True, **server):
    print(chunk.choices[0].delta.content or "", end="", flush=True)
print()
