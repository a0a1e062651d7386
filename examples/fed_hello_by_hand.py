"""Fed-HeLLo by hand: the paper (Zhang et al., arXiv 2506.12213) in plain torch, slow and obvious.

Each client can afford to train only some LoRA layers. The server says which: by depth in the first rounds, by Fisher
information later. tests/parity holds hellora to this file, so it only borrows `rng_for`, to draw the same numbers.
"""

import re
import warnings
from itertools import combinations

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModel, AutoTokenizer

from hellora.core.seeds import rng_for  # a generator of its own for every (seed, purpose, round, client)


class Classifier(nn.Module):
    """A frozen encoder with LoRA on every query and value; the mean of its last hidden states; a linear head."""

    def __init__(self, encoder, tokenizer, classes, rank, alpha):
        super().__init__()
        lora = LoraConfig(r=rank, lora_alpha=alpha, target_modules=["query", "value"])
        self.encoder, self.tokenizer = get_peft_model(encoder, lora), tokenizer
        self.head = nn.Linear(encoder.config.hidden_size, classes)

    def forward(self, texts):
        tokens = self.tokenizer(texts, padding=True, truncation=True, max_length=32, return_tensors="pt")
        states = self.encoder(**tokens).last_hidden_state  # (texts, tokens, width)
        mask = tokens["attention_mask"].unsqueeze(-1)
        return self.head((states * mask).sum(1) / mask.sum(1))

    def loss(self, examples):
        texts, labels = zip(*examples, strict=True)
        return nn.functional.cross_entropy(self(list(texts)), torch.tensor(labels))


def trainable(model):
    """θ, the adapter: a dict of the A and B of every layer that is not frozen, and of the head."""
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def layer_of(name):
    """The layer of a tensor, None for the head. The whole number counts: layer 1 is not layer 11."""
    found = re.search(r"\.layer\.(\d+)\.", name)
    return int(found[1]) if found else None


def load(model, theta, layers):
    """Put θ into the model. Only `layers` and the head get gradients; the other layers act, but are frozen."""
    for name, value in theta.items():
        parameter = model.get_parameter(name)
        parameter.data.copy_(value)
        parameter.grad = None
        parameter.requires_grad = layer_of(name) is None or layer_of(name) in layers


def geometric_probabilities(capacities, num_layers):
    """RGD-HLA, bottleneck: p_j ∝ the capacity groups that have layer j when they take their layers from both ends."""
    p = np.zeros(num_layers)
    for capacity in set(capacities):
        p[: (capacity + 1) // 2] += 1
        p[num_layers - capacity // 2 :] += 1
    return p / p.sum()


def fisher_scores(model, theta, proxy, num_layers):
    """FIM-HLA: Γ(j) = the mean over the proxy examples d of ‖∇_θj loss(d)‖², one example after the other."""
    scores = np.zeros(num_layers)
    for example in proxy:
        load(model, theta, range(num_layers))
        model.loss([example]).backward()
        for j in range(num_layers):
            scores[j] += sum(float((model.get_parameter(n).grad ** 2).sum()) for n in theta if layer_of(n) == j)
    return scores / len(proxy)


def fisher_probabilities(scores):
    """FIM-HLA: k-means of Γ into 3 clusters, by trying every two cuts of the sorted Γ; p is 1 : 2 : 3, lowest first."""
    order = np.argsort(scores)
    clusterings = [np.split(order, cuts) for cuts in combinations(range(1, len(scores)), 2)]
    best = min(clusterings, key=lambda clusters: sum(len(c) * scores[c].var() for c in clusters))
    p = np.zeros(len(scores))
    for weight, cluster in zip((1, 2, 3), best, strict=True):
        p[cluster] = weight
    return p / p.sum()


def sample_layers(p, capacity, rng):
    """`capacity` distinct layers by p: each layer's clock rings at rate p_j, and the first to ring are taken."""
    with np.errstate(divide="ignore"):  # with p_j = 0 it never rings
        rings = -np.log1p(-rng.random(len(p))) / p
    return sorted(np.argsort(rings)[:capacity].tolist())


def average(theta, updates):
    """Eq. 3, layer by layer: the mean over the clients that trained it, here by their numbers of examples."""
    new = dict(theta)  # what nobody trained stays
    for name in theta:
        if trained := [(n, update[name]) for n, update in updates if name in update]:
            new[name] = sum(n * tensor for n, tensor in trained) / sum(n for n, _ in trained)
    return new


def fed_hello(model, clients, capacities, proxy, rounds, cohort, warmup, refresh, seed, make_optimizer, batches_of):
    """The rounds. Yields who trained which layers, the Γ in force (None in the warm-up), and θ after the round."""
    model.eval()  # no dropout
    theta, scores = trainable(model), None
    num_layers = model.encoder.config.num_hidden_layers
    p = geometric_probabilities(capacities, num_layers)
    for t in range(rounds):
        if t >= warmup and (t - warmup) % refresh == 0:
            scores = fisher_scores(model, theta, proxy, num_layers)
            p = fisher_probabilities(scores)  # in force until the next refresh
        drawn = np.argsort(rng_for(seed, "cohort", t, 0).random(len(clients)))[:cohort]
        layers = {i: sample_layers(p, capacities[i], rng_for(seed, "layers", t, i)) for i in sorted(drawn.tolist())}
        updates = []
        for i in layers:
            load(model, theta, layers[i])
            optimizer = make_optimizer([w for w in model.parameters() if w.requires_grad])
            for batch in batches_of(i, t):  # places in the client's list of (text, label)
                optimizer.zero_grad()
                model.loss([clients[i][k] for k in batch]).backward()
                optimizer.step()
            updates.append((len(clients[i]), trainable(model)))  # only what was trained
        theta = average(theta, updates)
        yield layers, scores, theta


if __name__ == "__main__":  # under a minute: 12 clients with 50 docstrings each teach MiniLM to tell their topics
    from hellora.data.settings import DataSettings
    from hellora.data.sources import load_corpus
    from hellora.model.location import resolve_name

    warnings.filterwarnings("ignore", category=FutureWarning)  # peft asks transformers in an old way
    torch.set_num_threads(1)  # more would gain little on such small matrices, and lose a lot on a busy machine
    torch.manual_seed(0)
    corpus = load_corpus(DataSettings(max_examples=600, proxy_examples=30), "text", seed=0)
    train, test, proxy = (list(zip(*d[:].values(), strict=True)) for d in (corpus.train, corpus.test, corpus.proxy))
    encoder, tokenizer = (auto.from_pretrained(resolve_name("minilm")) for auto in (AutoModel, AutoTokenizer))
    model = Classifier(encoder, tokenizer, len(corpus.labels), rank=8, alpha=8)
    settings = {"rounds": 6, "cohort": 6, "warmup": 2, "refresh": 2, "seed": 0}
    settings["make_optimizer"] = lambda parameters: torch.optim.AdamW(parameters, lr=8e-3)
    settings["batches_of"] = lambda i, t: np.array_split(rng_for(0, "batches", t, i).permutation(50), 4)
    run = fed_hello(model, [train[i::12] for i in range(12)], [2, 4, 6] * 4, proxy, **settings)
    for t, (layers, scores, theta) in enumerate(run):
        load(model, theta, [])
        right = np.mean([int(model([text]).argmax()) == label for text, label in test[::8]])
        print(f"round {t}: accuracy {right:.2f}; layers by {'depth' if scores is None else 'Fisher'}: {layers}")
