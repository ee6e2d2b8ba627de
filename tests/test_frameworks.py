"""Beside others, with the real packages where they are installed (`pip install subspace_lib[frameworks]`)."""

import contextlib
import copy
import json
import os
import warnings
from pathlib import Path

import pytest
import torch
import torch.multiprocessing
import torch.nn.functional as F
from torch import nn

import subspace_lib
from subspace_lib import MLP, SubspaceModel, SubspaceOptimizer, count_parameters, make_projection
from subspace_lib.tasks import downloads

os.environ["HF_HUB_OFFLINE"] = "1"
X = torch.randn(64, 20, generator=torch.Generator().manual_seed(1))
Y = torch.arange(64) % 3


@pytest.fixture(scope="module", autouse=True)
def torchvision_that_loads():
    """Beside a CPU torch its wheel raises a RuntimeError, which these packages do not expect."""
    with contextlib.suppress(ImportError):
        downloads._import_torchvision_datasets()


def net_of():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 4), nn.Tanh(), nn.Linear(4, 3))


def weights(net):
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def optimizer_of(net, d=9, lr=0.05, optimizer_class=torch.optim.Adam):
    return SubspaceOptimizer(net, make_projection("one_hot", count_parameters(net), d), optimizer_class, lr=lr)


def plainly(net, optimizer, batches):
    for x, y in batches:
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()


BATCHES = [(X[i : i + 16], Y[i : i + 16]) for i in range(0, 64, 16)]


def gpt2():
    transformers = pytest.importorskip("transformers")
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=40, n_positions=16, n_embd=16, n_layer=2, n_head=2, pad_token_id=0)
    )


def test_a_language_model_in_trainer(tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    torch.manual_seed(0)
    net = gpt2()
    optimizer = optimizer_of(net, 64, 0.1)
    rows = [{"input_ids": (torch.arange(12) + i) % 8, "labels": (torch.arange(12) + i) % 8} for i in range(8)]
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), max_steps=20, per_device_train_batch_size=8, report_to=[], use_cpu=True,
        disable_tqdm=True, save_steps=10, logging_steps=1,
    )  # fmt: skip
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, 20)
    trainer = transformers.Trainer(net, arguments, train_dataset=rows, optimizers=(optimizer, scheduler))
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0] - 0.05
    assert optimizer.z.norm() > 0
    torch.testing.assert_close(weights(net), optimizer.theta0 + optimizer.P(optimizer.z.detach()))
    state = torch.load(tmp_path / "checkpoint-20" / "optimizer.pt", weights_only=True)
    again = gpt2().from_pretrained(tmp_path / "checkpoint-20")
    resumed = optimizer_of(again, 64, 0.1)
    resumed.load_state_dict(state)
    torch.testing.assert_close(weights(again), weights(net), rtol=1e-5, atol=1e-6)


def test_a_language_model_as_an_adapter_of_a_kilobyte(tmp_path):
    def base():
        net = gpt2()
        net.requires_grad_(False)
        net.transformer.h.requires_grad_(True)
        return net

    P = make_projection("one_hot", count_parameters(base()), 32)
    model = SubspaceModel.from_seed(base, P, 0)
    with torch.no_grad():
        model.z.normal_()
    words = torch.tensor([[1, 2, 3]])
    merged = model.eval().merge()
    torch.testing.assert_close(model(words).logits, merged(words).logits)
    model(words, labels=words).loss.backward()
    assert model.z.grad.norm() > 0
    made = merged.generate(words, max_new_tokens=4, do_sample=False)
    merged.save_pretrained(tmp_path / "whole")
    model.save(tmp_path / "adapter.safetensors")
    assert (tmp_path / "adapter.safetensors").stat().st_size < 4_000
    again = SubspaceModel.load(tmp_path / "adapter.safetensors", base).eval().merge()
    whole = type(merged).from_pretrained(tmp_path / "whole")
    for other in (again, whole):
        assert torch.equal(other.generate(words, max_new_tokens=4, do_sample=False), made)


def test_lora_inside_a_subspace():
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    net = peft.get_peft_model(gpt2(), peft.LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True))
    optimizer = optimizer_of(net, 20, 0.1)
    words = torch.arange(12).remainder(8)[None]
    losses = []
    for _ in range(10):
        loss = net(words, labels=words).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    model = SubspaceModel(net, optimizer.P)
    torch.testing.assert_close(model.eval()(words).logits, net.eval()(words).logits)
    merged = model.merge().merge_and_unload()
    torch.testing.assert_close(merged(words).logits, net(words).logits, rtol=1e-4, atol=1e-4)


def test_accelerate_takes_the_steps_of_a_plain_loop():
    accelerate = pytest.importorskip("accelerate")
    net, plain = net_of(), net_of()
    plainly(plain, optimizer_of(plain), BATCHES)
    accelerator = accelerate.Accelerator(cpu=True)
    inner = optimizer_of(net)
    model, optimizer, scheduler = accelerator.prepare(net, inner, torch.optim.lr_scheduler.StepLR(inner, 100))
    for x, y in BATCHES:
        optimizer.zero_grad()
        accelerator.backward(F.cross_entropy(model(x), y))
        accelerator.clip_grad_norm_(model.parameters(), 1e6)
        optimizer.step()
        scheduler.step()
    torch.testing.assert_close(weights(net), weights(plain))


@pytest.mark.parametrize("automatic", [True, False])
def test_lightning_takes_the_steps_of_a_plain_loop(automatic, tmp_path):
    lightning = pytest.importorskip("lightning")

    class Task(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net, self.automatic_optimization = net_of(), automatic

        def training_step(self, batch, _):
            loss = F.cross_entropy(self.net(batch[0]), batch[1])
            if not automatic:
                self.optimizers().zero_grad()
                self.manual_backward(loss)
                self.optimizers().step()
            return loss

        def configure_optimizers(self):
            return optimizer_of(self.net)

    task, plain = Task(), net_of()
    plainly(plain, optimizer_of(plain), BATCHES)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = lightning.Trainer(
            max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
            default_root_dir=tmp_path, enable_checkpointing=False, gradient_clip_val=1e6 if automatic else None,
        )  # fmt: skip
        trainer.fit(task, torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), batch_size=16))
    torch.testing.assert_close(weights(task.net), weights(plain))


def one_of_two(rank, store, results):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", store=torch.distributed.FileStore(store, 2), rank=rank, world_size=2)
    net = net_of()
    optimizer = optimizer_of(net)
    together = nn.parallel.DistributedDataParallel(net)
    plainly(together, optimizer, [(x[rank::2], y[rank::2]) for x, y in BATCHES])
    results[rank] = weights(net)
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this build of PyTorch has no gloo")
def test_two_processes_take_the_steps_of_one(tmp_path):
    plain = net_of()
    plainly(plain, optimizer_of(plain), BATCHES)
    with torch.multiprocessing.get_context("spawn").Manager() as manager:
        results = manager.dict()
        torch.multiprocessing.spawn(one_of_two, (str(tmp_path / "store"), results), nprocs=2)
        for theirs in results.values():
            torch.testing.assert_close(theirs, weights(plain), rtol=1e-4, atol=1e-5)


def test_a_compiled_network_takes_the_steps_of_a_plain_one():
    net, plain = net_of(), net_of()
    plainly(plain, optimizer_of(plain), BATCHES)
    plainly(torch.compile(net, backend="aot_eager"), optimizer_of(net), BATCHES)
    torch.testing.assert_close(weights(net), weights(plain))


def test_stochastic_weight_averaging_and_its_batch_norm():
    """Averages of theta0 + P z are theta0 + P (average of z); update_bn then runs over the averaged network."""
    net = nn.Sequential(nn.Linear(20, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    optimizer = optimizer_of(net, optimizer_class=torch.optim.SGD)
    average, zs = torch.optim.swa_utils.AveragedModel(net), []
    scheduler = torch.optim.swa_utils.SWALR(optimizer, swa_lr=0.1)
    for _ in range(3):
        plainly(net, optimizer, BATCHES)
        average.update_parameters(net)
        scheduler.step()
        zs.append(optimizer.z.detach().clone())
    torch.optim.swa_utils.update_bn([x for x, _ in BATCHES], average)
    theta = optimizer.theta0 + optimizer.P(torch.stack(zs).mean(0))
    torch.testing.assert_close(weights(average.module), theta, rtol=1e-4, atol=1e-5)
    assert average.module[1].num_batches_tracked == len(BATCHES)


def chapter_11():
    """The adapters that chapter 11 writes down for the first layer of a network, that network, and its input."""
    path = Path(__file__).resolve().parents[1] / "book" / "11_fine_tuning.ipynb"
    notebook = json.loads(path.read_text(encoding="utf-8"))
    source = "\n".join(
        "".join(cell["source"]) for cell in notebook["cells"] if cell["id"] in ("lora-parts", "lora-forms")
    )
    torch.manual_seed(0)
    names = {"torch": torch, "lib": subspace_lib, "digits": MLP(), "device": "cpu"}
    exec(source, names)
    return names, torch.randn(5, 784)


def by_the_chapter(names, form, z, x):
    weight = names["W0"] + names["FORMS"][form](z)
    return torch.func.functional_call(names["digits"], {"1.weight": weight}, (x,))


@pytest.mark.parametrize("form", ["LoRA, rank 1", "VeRA, rank 16", "Uni-LoRA, rank 4"])
@torch.no_grad()
def test_adapters_of_peft_are_those_of_chapter_11(form):
    peft = pytest.importorskip("peft")
    names, x = chapter_11()
    z = torch.randn({"LoRA, rank 1": 984, "VeRA, rank 16": 216, "Uni-LoRA, rank 4": 200}[form])
    net = copy.deepcopy(names["digits"])
    if form.startswith("LoRA"):
        model = peft.get_peft_model(net, peft.LoraConfig(r=1, lora_alpha=1, target_modules=["1"]))
        layer = model.base_model.model[1]
        layer.lora_B["default"].weight.copy_(z[:200, None])
        layer.lora_A["default"].weight.copy_(z[None, 200:])
    elif form.startswith("VeRA"):
        model = peft.get_peft_model(net, peft.VeraConfig(r=16, target_modules=["1"]))
        layer = model.base_model.model[1]
        layer.vera_A["default"].copy_(names["A"])
        layer.vera_B["default"].copy_(names["B"])
        layer.vera_lambda_b["default"].copy_(z[:200])
        layer.vera_lambda_d["default"].copy_(z[200:])
    else:
        config = pytest.importorskip("peft.tuners.unilora").UniLoraConfig
        model = peft.get_peft_model(net, config(r=4, theta_d_length=200, target_modules=["1"]))
        layer = model.base_model.model[1]
        P = names["uni"].to_dense()  # one entry in each row
        index = P.abs().argmax(1)
        scale = P[torch.arange(len(P)), index]
        for part, shape, rows in (("B", (200, 4), slice(0, 800)), ("A", (4, 784), slice(800, None))):
            getattr(layer, f"unilora_indices_{part}")["default"].copy_(index[rows].view(shape))
            getattr(layer, f"unilora_scales_{part}")["default"].copy_(scale[rows].view(shape))
        layer.unilora_theta_d["default"].copy_(z)
    assert torch.allclose(model(x), by_the_chapter(names, form, z, x), atol=1e-5)
    assert not torch.allclose(model(x), names["digits"](x), atol=1e-2)
