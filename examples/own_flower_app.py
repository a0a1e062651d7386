"""Hellora in a Flower app of one's own: your model, your loop, your data; hellora decides who trains what, and merges.

python examples/own_flower_app.py        # six unequal clients on Flower's simulation, about a minute
"""

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hellora.bridges.flower import LoraStrategy
from hellora.data.stdlib_docs import load as docstrings
from hellora.model.location import resolve_name

CLIENTS, LAYERS = 6, (2, 4, 6)  # a third of the clients can train 2 of MiniLM's 6 layers, a third 4, a third all
client, server = ClientApp(), ServerApp()


def network():
    bert = AutoModelForSequenceClassification.from_pretrained(resolve_name("minilm"), num_labels=20)
    return get_peft_model(bert, LoraConfig(task_type="SEQ_CLS", r=8, lora_alpha=8, target_modules=["query", "value"]))


def batches(rows, size=16):
    tokenizer = AutoTokenizer.from_pretrained(resolve_name("minilm"))
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        tokens = tokenizer(part["text"], padding=True, truncation=True, max_length=32, return_tensors="pt")
        yield {**tokens, "labels": torch.tensor(part["label"])}


def own_rows(context, count=128):
    place = int(context.node_config["partition-id"])
    return place, docstrings()["train"].select(range(place, count * CLIENTS, CLIENTS))


@client.query("join")
def join(message, context):
    place, rows = own_rows(context)
    budget = {"name": f"client {place}", "num-examples": len(rows), "layers": LAYERS[place % 3]}
    return Message(RecordDict({"budget": ConfigRecord(budget)}), reply_to=message)


@client.train()
def train(message, context):
    net, mine = network(), list(message.content["config"]["train"])  # the names of what this client trains now
    net.load_state_dict(message.content["arrays"].to_torch_state_dict(), strict=False)
    for name, parameter in net.named_parameters():
        parameter.requires_grad = name in mine
    optimizer = torch.optim.AdamW([net.get_parameter(name) for name in mine], lr=5e-3)
    _, rows = own_rows(context)
    for batch in batches(rows):
        loss = net(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    trained = ArrayRecord({name: net.get_parameter(name).detach() for name in mine})
    metrics = MetricRecord({"num-examples": len(rows), "loss": float(loss.detach())})
    return Message(RecordDict({"arrays": trained, "metrics": metrics}), reply_to=message)


@server.main()
def main(grid, _):
    net, test = network().eval(), docstrings()["test"].select(range(256))

    @torch.no_grad()
    def evaluate(_, arrays):
        net.load_state_dict(arrays.to_torch_state_dict(), strict=False)
        right = sum(int((net(**b).logits.argmax(1) == b["labels"]).sum()) for b in batches(test))
        return MetricRecord({"accuracy": right / len(test)})

    adapter = ArrayRecord({name: p.detach() for name, p in net.named_parameters() if p.requires_grad})
    strategy = LoraStrategy("random_layers", {"cohort": 4}, clients=CLIENTS)
    result = strategy.start(grid, adapter, num_rounds=3, evaluate_fn=evaluate)
    for server_round, metrics in result.evaluate_metrics_serverapp.items():
        print(f"after round {server_round}: accuracy {metrics['accuracy']:.3f}")


if __name__ == "__main__":
    from flwr.simulation import run_simulation

    run_simulation(server, client, num_supernodes=CLIENTS)
