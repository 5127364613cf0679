"""Adapters of a running `octavo serve`: one question to the model and to each adapter, and a new version of one.

pip install openai httpx 'octavo[server]'
octavo serve --lora-modules sql=adapters/sql --lora-root adapters & python examples/adapters_client.py URL sql sql-v2

OCTAVO_API_KEY and OCTAVO_ADMIN_API_KEY hold the keys. Without the names at the end nothing is loaded.
"""

import os
import sys

import httpx
import openai

url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
client = openai.OpenAI(base_url=f"{url}/v1", api_key=os.environ.get("OCTAVO_API_KEY", "not needed"))


def ask_all() -> None:
    for model in client.models.list():
        facts = (model.model_extra or {}).get("adapter")
        note = f"generation {facts['generation']}, rank {facts['rank']}" if facts else "the model"
        turns: list = [{"role": "user", "content": "Who are you?"}]
        answer = client.chat.completions.create(model=model.id, messages=turns, temperature=0, max_tokens=32)
        print(f"{model.id} ({note}): {answer.choices[0].message.content!r}")


ask_all()
if len(sys.argv) > 3:
    name, path = sys.argv[2:]
    headers = {"Authorization": f"Bearer {os.environ['OCTAVO_ADMIN_API_KEY']}"}
    body = {"lora_name": name, "lora_path": path, "load_inplace": True}
    # `If-Match` with the generation of the list would refuse the change if another administrator was faster.
    loaded = httpx.post(f"{url}/v1/load_lora_adapter", json=body, headers=headers, timeout=600)
    print(loaded.json()["message"] if loaded.is_success else loaded.json()["error"]["message"])
    ask_all()
