"""The OpenAI-compatible server as a part of a Flask application, and OpenAI's client talking to it."""

import threading

import openai
from flask import Flask
from octavo import LLM
from octavo.server import create_wsgi_app
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.serving import make_server

llm = LLM()
app = Flask(__name__)
app.wsgi_app = DispatcherMiddleware(app.wsgi_app, {"/llm": create_wsgi_app(llm)})


@app.get("/")
def home() -> str:
    return "the model is at /llm/v1"


# In production: `gunicorn --threads 32 module:app`, with a function that makes the LLM instead of the LLM itself.
server = make_server("127.0.0.1", 0, app, threaded=True)
thread = threading.Thread(target=server.serve_forever)
thread.start()

with openai.OpenAI(base_url=f"http://127.0.0.1:{server.server_port}/llm/v1", api_key="not needed") as client:
    stream = client.chat.completions.create(
        model="octavo-embedded", messages=[{"role": "user", "content": "Who are you?"}], stream=True, temperature=0
    )
    for chunk in stream:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
    print()

server.shutdown()
thread.join()
llm.close()
