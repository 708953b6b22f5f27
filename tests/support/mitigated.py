"""A training loop with a mitigation, as in the docstring of `Mitigation`."""

import torch

from hf_plasticity.network import optimizer_moments


def make_optimizer(model, lr=1e-2, weight_decay=0.0, betas=(0.9, 0.95)):
    """AdamW with matrices in one group and everything else in another, as in the Trainer."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    others = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=betas)


def train(model, optimizer, mitigation, tokens, steps, first=1, task_steps=None, zero_gradient=False):
    """Steps on one batch, with gradients or with gradients of zero."""
    for step in range(first, first + steps):
        model(input_ids=tokens, labels=tokens).loss.backward()
        if zero_gradient:
            for parameter in model.parameters():
                parameter.grad.zero_()
        mitigation.before_step(step)
        optimizer.step()
        mitigation.after_step(step)
        optimizer.zero_grad()
        mitigation.step_end(step)
        if task_steps and step % task_steps == 0:
            mitigation.task_end(step)


def copy_of(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def logits_of(model, tokens):
    """Without the hooks of a mitigation, which ignore a model in evaluation mode."""
    model.eval()
    with torch.no_grad():
        logits = model(input_ids=tokens).logits
    model.train()
    return logits


def moments_of(model, optimizer, name):
    return optimizer_moments(optimizer, dict(model.named_parameters())[name])
