"""Hellora in a Flower app of one's own: your model, your loop, your data; hellora decides who trains what, and merges.

    python examples/own_flower_app.py        # six unequal clients on Flower's simulation, about a minute

What a client does is code of its own: it borrows nothing from hellora but the data and the model to try it with.
"""

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModel, AutoTokenizer

from hellora.bridges.flower import LoraStrategy
from hellora.data.stdlib_docs import load as docstrings
from hellora.model.location import resolve_name

CLIENTS, LAYERS = 6, (2, 4, 6)  # a third of the clients can train 2 of MiniLM's 6 layers, a third 4, a third all
client, server = ClientApp(), ServerApp()


class Classifier(nn.Module):
    def __init__(self, folder):
        super().__init__()
        encoder, self.tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        self.head = nn.Linear(encoder.config.hidden_size, 20)
        self.encoder = get_peft_model(encoder, LoraConfig(r=8, lora_alpha=8, target_modules=["query", "value"]))

    def forward(self, texts):
        tokens = self.tokenizer(texts, padding=True, truncation=True, max_length=32, return_tensors="pt")
        mask = tokens["attention_mask"].unsqueeze(-1)
        return self.head((self.encoder(**tokens).last_hidden_state * mask).sum(1) / mask.sum(1))


def network():
    return Classifier(resolve_name("minilm")).eval()


def rows_of(context, count=96):
    """Your data: each client has a part of the docstrings of Python's standard library, and learns their topics."""
    place = int(context.node_config["partition-id"])
    return place, docstrings()["train"].select(range(place, count * CLIENTS, CLIENTS))


@client.query("join")
def join(message, context):
    place, rows = rows_of(context)
    budget = {"name": f"client {place}", "num-examples": len(rows), "layers": LAYERS[place % 3]}
    return Message(RecordDict({"budget": ConfigRecord(budget)}), reply_to=message)


@client.train()
def train(message, context):
    net, mine = network(), list(message.content["config"]["train"])  # the names of what this client trains now
    net.load_state_dict(message.content["arrays"].to_torch_state_dict(), strict=False)
    for name, parameter in net.named_parameters():
        parameter.requires_grad = name in mine
    optimizer = torch.optim.AdamW([net.get_parameter(name) for name in mine], lr=1e-2)
    _, rows = rows_of(context)
    for batch in rows.iter(batch_size=16):
        loss = nn.functional.cross_entropy(net(batch["text"]), torch.tensor(batch["label"]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    trained = ArrayRecord({name: net.get_parameter(name).detach() for name in mine})
    metrics = MetricRecord({"num-examples": len(rows), "loss": float(loss.detach())})
    return Message(RecordDict({"arrays": trained, "metrics": metrics}), reply_to=message)


@server.main()
def main(grid, _):
    net, test = network(), docstrings()["test"][:200]
    adapter = ArrayRecord({name: p.detach() for name, p in net.named_parameters() if p.requires_grad})

    @torch.no_grad()
    def evaluate(_, arrays):
        net.load_state_dict(arrays.to_torch_state_dict(), strict=False)
        right = net(test["text"]).argmax(1) == torch.tensor(test["label"])
        return MetricRecord({"accuracy": float(right.float().mean())})

    strategy = LoraStrategy("random_layers", {"cohort": 4}, clients=CLIENTS)
    result = strategy.start(grid, adapter, num_rounds=2, evaluate_fn=evaluate)
    for server_round, metrics in result.evaluate_metrics_serverapp.items():
        print(f"after round {server_round}: accuracy {metrics['accuracy']:.3f}")


if __name__ == "__main__":
    from flwr.simulation import run_simulation

    run_simulation(server, client, num_supernodes=CLIENTS)
