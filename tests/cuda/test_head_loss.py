"""On CUDA: the fused loss of the output head has the loss and the gradients of the model's own, also with Triton."""

import pytest
import torch

from hf_plasticity.network import head_loss
from hf_plasticity.network.head_loss import use_head_loss
from support.families import VOCABULARY, make_model


def loss_and_gradients(model, input_ids, precision):
    model.zero_grad()
    with torch.autocast(input_ids.device.type, torch.bfloat16, enabled=precision == "bf16"):
        loss = model(input_ids=input_ids, labels=input_ids).loss
    loss.backward()
    return loss.item(), {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("triton", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_fused_loss_is_that_of_the_model(monkeypatch, device, precision, triton):
    # Four chunks, of which the last is smaller.
    monkeypatch.setattr(head_loss, "CHUNK_LOGITS", 24 * VOCABULARY)
    monkeypatch.setattr(head_loss, "CHUNK_MULTIPLE", 8)
    model = make_model("gpt2").float().to(device)
    input_ids = torch.randint(2, VOCABULARY, (3, 29), generator=torch.Generator().manual_seed(1)).to(device)
    use_head_loss(model, "logits")
    loss, gradients = loss_and_gradients(model, input_ids, precision)
    use_head_loss(model, "fused")
    model._fused_head_loss.triton = triton
    fused_loss, fused_gradients = loss_and_gradients(model, input_ids, precision)
    tolerance = 2e-2 if precision == "bf16" else 1e-5
    assert fused_loss == pytest.approx(loss, rel=tolerance)
    for name, gradient in gradients.items():
        assert (fused_gradients[name] - gradient).norm() < tolerance * gradient.norm(), name
