"""LangChain on a running `octavo serve`: an answer, a stream, a tool call, an answer as an object.

pip install langchain-openai 'octavo[server]'
octavo serve & python examples/langchain_chat.py [URL]
"""

import os
import sys
from typing import Annotated, Literal

from langchain_core.prompts import ChatPromptTemplate
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, Field

model = ChatOpenAI(
    base_url=(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000") + "/v1",
    api_key=os.environ.get("OCTAVO_API_KEY", "not needed"),
    model="octavo-embedded",
    temperature=0,
    max_tokens=64,
)

chain = ChatPromptTemplate.from_messages([("system", "Be brief."), ("user", "{question}")]) | model
print("answer:", chain.invoke({"question": "Who are you?"}).content)

print("stream: ", end="")
for piece in chain.stream({"question": "Hello!"}):
    print(piece.content, end="", flush=True)
print()


@tool
def weather(city: Literal["Paris", "Rome"], days: Annotated[int, Field(ge=1, le=7)]) -> str:
    """The weather in a city for some days."""
    return f"{days} sunny days in {city}"


# The arguments follow the tool's schema by construction, whatever the model.
called = model.bind_tools([weather], tool_choice="weather").invoke("What is the weather in Paris?")
for call in called.tool_calls:
    print("tool:", call["name"], sorted(call["args"]))


class Animal(BaseModel):
    kind: str = Field(max_length=12)
    legs: int = Field(ge=0, le=8)


print("object:", type(model.with_structured_output(Animal).invoke("Describe a cat.")).__name__)
