"""The OpenAI-compatible server as a part of a FastAPI application, and OpenAI's client talking to it.

With Flask: `app.wsgi_app = DispatcherMiddleware(app.wsgi_app, {"/llm": create_wsgi_app(llm)})`, from werkzeug.
"""

import threading
import time

import openai
import uvicorn
from fastapi import FastAPI
from octavo import LLM
from octavo.server import create_app

llm = LLM()
app = FastAPI()
app.mount("/llm", create_app(llm))


@app.get("/")
def home() -> str:
    return "the model is at /llm/v1"


# In production: `uvicorn module:app`. Here server and client share a program.
server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
thread = threading.Thread(target=server.run)
thread.start()
while not server.started:
    time.sleep(0.01)
port = server.servers[0].sockets[0].getsockname()[1]

with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/llm/v1", api_key="not needed") as client:
    stream = client.chat.completions.create(
        model="octavo-embedded", messages=[{"role": "user", "content": "Who are you?"}], stream=True, temperature=0
    )
    for chunk in stream:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
    print()

server.should_exit = True
thread.join()
llm.close()
