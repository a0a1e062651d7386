"""hellora's apps for Flower, with the times of each message written to the file that TIMES names: when the server made
it, when the client's process had it, when the trainer had answered. For benchmarks/deployment.py."""

import json
import os
import time
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from hellora.deployment.flower_app import client as plain

client = ClientApp()


@client.train()
def train(message: Message, context: Context) -> Message:
    begun = time.time()
    answer = plain(message, context)
    line = {"made": message.metadata.created_at, "begun": begun, "ended": time.time()}
    with Path(os.environ["TIMES"]).open("a") as file:
        file.write(json.dumps(line) + "\n")
    return answer


@client.query("join")
def join(message: Message, context: Context) -> Message:
    return plain(message, context)


@client.query("prepare")
def prepare(message: Message, context: Context) -> Message:
    return plain(message, context)
