"""Sweeps of trainings: their curves, and what happens when they are cut off and taken up."""

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from sae_lens import SAE, StandardSAE, StandardSAEConfig, TopKSAE
from safetensors import safe_open
from toy_sweep import BATCH, D, K, M, Stream, activations, config, transferred

from stitch_utils.saes import training as sae_training
from stitch_utils.saes.initialisation import starting_sae
from stitch_utils.saes.training import Curve, load_trained, train_saes
from stitch_utils.utils.files import remove_sealed

# Sweeps


@pytest.fixture(scope="module")
def held_out():
    return activations(300, seed=99)


def sweep_of_three():
    given = transferred()
    configs = [
        config(lr=1e-3),
        config(lr=1e-3, initial="stitch"),
        config(lr=1e-3, seed=1, n_steps=20, mean_bias=True),
    ]
    return configs, {configs[1].name: given}


def run_sweep(folder, held_out, stream=None, **options):
    configs, given = sweep_of_three()
    stream = Stream() if stream is None else stream
    options = {"evaluate_every": 7, "checkpoint_every": 8, "initial_saes": given} | options
    return configs, train_saes(stream, configs, held_out=held_out, folder=folder, **options)


def assert_same_curves(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, curve in ours.items():
        for field, value in curve._asdict().items():
            if field != "seconds":
                np.testing.assert_array_equal(value, getattr(theirs[name], field), err_msg=f"{name}: {field}")


def test_curves_are_those_of_the_trained_saes(tmp_path, held_out):
    stream = Stream()
    configs, curves = run_sweep(tmp_path, held_out, stream)
    assert stream.begun == 1, "one pass feeds all runs"
    for chosen in configs:
        curve = curves[chosen.name]
        last = chosen.n_steps
        assert curve.steps.tolist() == [0, *(s for s in (7, 14, 21, 28) if s < last), last]
        np.testing.assert_array_equal(curve.tokens, curve.steps * BATCH)
        np.testing.assert_allclose(curve.flops, curve.tokens * 10.0 * D * M)
        sae = load_trained(tmp_path, chosen)
        assert type(sae) is TopKSAE and isinstance(SAE.load_from_disk(tmp_path / "saes" / chosen.name), TopKSAE)
        assert not sae.cfg.rescale_acts_by_decoder_norm and not sae.cfg.apply_b_dec_to_input and sae.cfg.k == K
        torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(M))
        with torch.no_grad():
            acts, error = sae.encode(held_out), sae(held_out) - held_out
        assert curve.mse[-1] == pytest.approx(error.square().mean().item(), rel=1e-5)
        unexplained = error.square().sum() / (held_out - held_out.mean(0)).square().sum()
        assert curve.explained_variance[-1] == pytest.approx(1 - unexplained.item(), abs=1e-5)
        np.testing.assert_array_equal(curve.dead, (acts > 0).sum(0).numpy() == 0)
        assert curve.counted == len(held_out)
        start = starting_sae(chosen, D, transferred() if chosen.initial == "stitch" else None)
        np.testing.assert_allclose(curve.cosine, (start.W_dec * sae.W_dec).sum(1).detach(), atol=1e-5)
        assert curve.mse[-1] < curve.mse[0] and curve.seconds[-1] > 0 == curve.seconds[0]


def test_the_batches_are_the_stream_shuffled_in_parts_again_and_again(monkeypatch):
    """Three batches a pass, the first two of which are shuffled together."""
    monkeypatch.setattr(sae_training, "SHUFFLED", 2)
    stream = torch.arange(200.0)[:, None].split(30)
    found = list(islice(sae_training._batches(stream, 64, 0), 9))
    orders = []
    for start in range(0, 9, 3):
        order = [batch.flatten().tolist() for batch in found[start : start + 3]]
        assert sorted(order[0] + order[1]) == list(range(128)) and sorted(order[2]) == list(range(128, 192))
        assert 16 < sum(number < 64 for number in order[0]) < 48, "rows of both are in either"
        orders.append(tuple(order[2]))
    assert len({*orders, tuple(range(128, 192))}) == 4, "no pass has the order of another, or the stream's"
    for skip in range(1, 7):
        later = islice(sae_training._batches(stream, 64, skip), 9 - skip)
        assert all(torch.equal(*pair) for pair in zip(later, found[skip:], strict=True))


def test_it_is_counted_in_which_documents_latents_fire(tmp_path, held_out):
    """Against a loop over documents, one of which is in two parts; on few tokens, so that there are all three cases."""
    x, documents = activations(60, seed=5), torch.arange(60) // 4 + 3
    configs, curves = run_sweep(tmp_path, held_out, counted=[(x[:31], documents[:31]), (x[31:], documents[31:])])
    for chosen in configs:
        with torch.no_grad():
            fires = load_trained(tmp_path, chosen).encode(x) > 0
        expected = []
        for latent in range(M):
            where = set(documents[fires[:, latent]].tolist())
            expected.append({0: -1, 1: min(where, default=-1)}.get(len(where), -2))
        found = curves[chosen.name]
        assert found.fires_in.tolist() == expected and found.counted == 60
        assert {-1, -2} < set(expected) and found.dead.sum() == expected.count(-1)


def test_counting_ends_where_every_latent_has_fired_in_two_documents(held_out, monkeypatch):
    """What is read after that could change nothing, so it is not encoded."""
    run = sae_training._Run(config(k=M), held_out, None, {})
    run.sae.b_enc.data += 100  # every latent fires on every token
    encoded = []
    encode = sae_training.encode
    monkeypatch.setattr(sae_training, "encode", lambda sae, x: encoded.append(len(x)) or encode(sae, x))
    for document in range(4):
        run.count(held_out[:5], torch.full((5,), document))
    assert encoded == [5, 5] and run.counted == 20


def test_each_run_is_what_it_is_alone(tmp_path, held_out):
    configs, curves = run_sweep(tmp_path / "all", held_out)
    for chosen in configs:
        given = {chosen.name: transferred()} if chosen.initial == "stitch" else {}
        alone = train_saes(
            Stream(), [chosen], held_out=held_out, folder=tmp_path / chosen.name, evaluate_every=7, initial_saes=given
        )
        assert_same_curves(alone, {chosen.name: curves[chosen.name]})


def test_the_mean_bias_is_that_of_the_first_batch(tmp_path, held_out):
    chosen = config(n_steps=1, lr=1e-12, mean_bias=True)
    train_saes(Stream(), [chosen], held_out=held_out, folder=tmp_path)
    sae, mean = load_trained(tmp_path, chosen), next(sae_training._batches(Stream(), BATCH, 0)).mean(0)
    torch.testing.assert_close(sae.b_dec.detach(), mean)
    read = (mean @ sae.W_enc + sae.b_enc).detach()
    torch.testing.assert_close(read, torch.zeros(M), rtol=0, atol=1e-5)
    assert (mean @ sae.W_enc).abs().max() > 0.1


def test_an_interrupted_sweep_goes_on_where_it_was(tmp_path, held_out):
    """The stream breaks after 35 batches, 20 of them shuffled together: the second attempt starts from step 16."""
    _, undisturbed = run_sweep(tmp_path / "undisturbed", held_out)

    class Broken(Stream):
        def __iter__(self):
            yield from self.parts[:45]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_sweep(tmp_path / "broken", held_out, Broken())
    assert facts(tmp_path / "broken")["step"] == 16
    assert_same_curves(run_sweep(tmp_path / "broken", held_out)[1], undisturbed)
    for chosen in sweep_of_three()[0]:
        ours, theirs = (load_trained(tmp_path / name, chosen) for name in ("broken", "undisturbed"))
        assert all(torch.equal(ours.state_dict()[key], value) for key, value in theirs.state_dict().items())


def facts(folder):
    """What is noted in the state of a sweep beside its tensors."""
    with safe_open(folder / "sweep.safetensors", framework="pt") as file:
        found = file.metadata()
    return found | {"step": int(found["step"])}


def test_a_state_is_whole_or_the_one_before(tmp_path, monkeypatch):
    path, w = tmp_path / "sweep.safetensors", torch.arange(3.0)
    sae_training._write_state(path, "x", 1, {"run": {"w": w}})

    def dies(state, target, **more):
        Path(target).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(sae_training, "save_file", dies)
    with pytest.raises(KeyboardInterrupt):
        sae_training._write_state(path, "x", 2, {"run": {"w": w}})
    step, found = sae_training._read_state(path, "x")
    assert step == 1 and list(found) == ["run"] and torch.equal(found["run"]["w"], w)
    assert sae_training._read_state(path, "y") == (0, {})


def spoil(path):
    """Turns one bit over."""
    content = bytearray(path.read_bytes())
    content[-9] ^= 16
    path.write_bytes(content)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-9])


@pytest.mark.parametrize("damage", [spoil, truncate])
@pytest.mark.parametrize("name", ["sweep.safetensors", "saes/{0}/sae_weights.safetensors", "saes/{0}/cfg.json"])
def test_a_damaged_sweep_is_trained_again(tmp_path, held_out, name, damage):
    (chosen, *_), expected = run_sweep(tmp_path, held_out)
    damage(tmp_path / name.format(chosen.name))
    if "saes" in name:
        with pytest.raises(ValueError, match=f"holds no trained SAE '{chosen.name}', or a damaged one: train"):
            load_trained(tmp_path, chosen)
    stream = Stream()
    with pytest.warns(UserWarning, match="is not as it was written .truncated, or changed on the disk.: it is made"):
        again = run_sweep(tmp_path, held_out, stream)[1]
    assert stream.begun == 1
    assert_same_curves(again, expected)
    load_trained(tmp_path, chosen)


def test_a_sweep_whose_sae_was_tidied_away_is_trained_again_without_a_word(tmp_path, held_out):
    (chosen, *_), expected = run_sweep(tmp_path, held_out)
    remove_sealed(tmp_path / "saes" / chosen.name)
    stream = Stream()
    assert_same_curves(run_sweep(tmp_path, held_out, stream)[1], expected)
    assert stream.begun == 1 and load_trained(tmp_path, chosen).cfg.d_sae == M


def test_a_damaged_state_of_an_unfinished_sweep_is_not_gone_on_from(tmp_path, held_out):
    """One bit of Adam's moments: nothing would tell the curves that come of it from right ones."""
    _, undisturbed = run_sweep(tmp_path / "undisturbed", held_out)

    class Broken(Stream):
        def __iter__(self):
            yield from self.parts[:45]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_sweep(tmp_path / "broken", held_out, Broken())
    spoil(tmp_path / "broken" / "sweep.safetensors")
    with pytest.warns(UserWarning, match="is not as it was written"):
        assert_same_curves(run_sweep(tmp_path / "broken", held_out)[1], undisturbed)


def test_of_two_processes_the_second_waits_and_finds_a_finished_sweep(tmp_path, held_out):
    """Threads stand in for them: the lock is on an open file, and so between the two as between processes."""
    found, streams = {}, [Stream(), Stream()]

    def train(number):
        found[number] = run_sweep(tmp_path, held_out, streams[number])[1]

    threads = [threading.Thread(target=train, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert sorted(stream.begun for stream in streams) == [0, 1]
    assert_same_curves(found[0], found[1])


CHILD = """
import sys, time
sys.path[:0] = [{here!r}, {tests!r}, {root!r}]
import torch
torch.set_num_threads({threads})
from test_training import Stream, activations, run_sweep

class Slow(Stream):
    def __iter__(self):
        for part in self.parts:
            time.sleep(0.05)
            yield part

run_sweep({folder!r}, activations(300, seed=99), Slow(), checkpoint_every=1)
"""


def test_a_killed_process_leaves_a_sweep_that_can_be_taken_up(tmp_path, held_out):
    _, undisturbed = run_sweep(tmp_path / "undisturbed", held_out, checkpoint_every=1)
    folder, (here, tests, root) = tmp_path / "killed", map(str, list(Path(__file__).parents)[:3])
    threads = torch.get_num_threads()
    source = CHILD.format(here=here, tests=tests, root=root, folder=str(folder), threads=threads)
    child = subprocess.Popen([sys.executable, "-c", source], env=os.environ, start_new_session=True)
    try:
        limit = time.monotonic() + 120
        while not (folder / "sweep.safetensors").exists() and child.poll() is None and time.monotonic() < limit:
            time.sleep(0.02)
        time.sleep(0.3)  # some steps on, wherever it is
        assert child.poll() is None, "the child ended before it was killed"
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert 0 < facts(folder)["step"] < 30
    stream = Stream()
    assert_same_curves(run_sweep(folder, held_out, stream, checkpoint_every=1)[1], undisturbed)


def test_a_finished_sweep_is_read_back(tmp_path, held_out):
    class Untouchable:
        def __iter__(self):
            raise AssertionError("the stream was read")

    _, curves = run_sweep(tmp_path, held_out)
    again = run_sweep(tmp_path, held_out, Untouchable())[1]
    assert_same_curves(again, curves)
    for name, curve in curves.items():
        assert isinstance(again[name], Curve)
        np.testing.assert_array_equal(again[name].seconds, curve.seconds)
    assert (tmp_path / "sweep.safetensors").stat().st_size < 100_000, "weights and Adam's moments are not kept"


def test_whatever_is_new_starts_anew(tmp_path, held_out):
    """After other settings, held-out activations or initial SAEs nothing old is left."""
    configs, _ = run_sweep(tmp_path, held_out)
    longer, other = dataclasses.replace(configs[0], n_steps=31), transferred(seed=4)
    changes = [
        lambda stream: run_sweep(tmp_path, held_out, stream, evaluate_every=5),
        lambda stream: run_sweep(tmp_path, held_out, stream, initial_saes={configs[1].name: other}),
        lambda stream: run_sweep(tmp_path, held_out, stream, metadata={"model_name": "b"}),
        lambda stream: run_sweep(tmp_path, held_out + 1, stream),
        lambda stream: train_saes(stream, configs[::2], held_out=held_out, folder=tmp_path, evaluate_every=7),
        lambda stream: train_saes(stream, [longer], held_out=held_out, folder=tmp_path, evaluate_every=7),
    ]
    digests = [facts(tmp_path)["digest"]]
    for change in changes:
        stream = Stream()
        change(stream)
        assert stream.begun == 1
        digests.append(facts(tmp_path)["digest"])
    assert len(set(digests)) == len(digests)
    with pytest.raises(ValueError, match=f"holds no trained SAE '{configs[1].name}'"):
        load_trained(tmp_path, configs[1])


def test_metadata_is_in_the_trained_sae(tmp_path, held_out):
    chosen = config(n_steps=1)
    train_saes(Stream(), [chosen], held_out=held_out, folder=tmp_path, metadata={"model_name": "b", "hook_name": "h"})
    metadata = load_trained(tmp_path, chosen).cfg.metadata
    assert (metadata.model_name, metadata.hook_name) == ("b", "h")


def test_training_leaves_the_global_generator_alone(tmp_path, held_out):
    given = {config(initial="rotation").name: transferred(d_in=8)}
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train_saes(
        Stream(),
        [config(n_steps=2), config(initial="rotation", n_steps=2)],
        held_out=held_out,
        folder=tmp_path,
        initial_saes=given,
    )
    assert torch.equal(torch.rand(3), expected)


def test_names_tell_runs_apart():
    kinds = [
        config(),
        config(seed=1),
        config(initial="stitch"),
        config(lr=1e-3),
        config(auxiliary_loss=True),
        config(mean_bias=True),
        config(beta1=0.0),
        config(k=5),
        config(d_sae=65),
    ]
    assert len({kind.name for kind in kinds}) == len(kinds)
    assert kinds[0].name == "random-64-k4-seed0"


def test_errors(tmp_path, held_out):
    for changes, message in (
        ({"initial": "other"}, "unknown initial 'other': expected one of random, stitch, rotation"),
        ({"k": M + 1}, "1 <= k <= d_sae"),
        ({"n_steps": 0}, "n_steps"),
        ({"beta1": 1.0}, "beta1 from 0 to below 1: got 1.0"),
    ):
        with pytest.raises(ValueError, match=message):
            config(**changes)
    stitched = config(initial="stitch")
    with pytest.raises(ValueError, match="none was given"):
        starting_sae(stitched, D)
    for changes, given, message in (
        ({}, transferred(d_in=8), r"of \('topk', 'none', 64, 8\): expected \('topk', 'none', 64, 12\)"),
        ({"initial": "rotation", "d_sae": M + 1}, transferred(d_in=8), r"64, 8\): expected \('topk', 'none', 65, 8\)"),
        ({"initial": "rotation"}, transferred(d_in=D + 1), r"64, 13\): expected \('topk', 'none', 64, 12\)"),
        ({}, StandardSAE(StandardSAEConfig(d_in=D, d_sae=M)), r"of \('standard', .* expected \('topk'"),
    ):
        with pytest.raises(ValueError, match=message):
            starting_sae(config(**{"initial": "stitch", **changes}), D, given)

    def train(configs, stream=None, **options):
        train_saes(stream or Stream(), configs, held_out=held_out, folder=tmp_path, **options)

    with pytest.raises(ValueError, match="no two of one name: got random"):
        train([config(), config(n_steps=5)])
    with pytest.raises(ValueError, match=r"at least one run .* got none"):
        train([])
    with pytest.raises(ValueError, match="batch_tokens of 32, 64"):
        train([config(), config(seed=1, batch_tokens=32)])
    with pytest.raises(ValueError, match="initial_saes has nobody: expected names of runs"):
        train([config()], initial_saes={"nobody": transferred()})
    with pytest.raises(ValueError, match="none was given in initial_saes"):
        train([stitched])
    with pytest.raises(ValueError, match="activations of width 5: expected held_out's 12"):
        train([config()], [activations(200, d=5)])
    with pytest.raises(ValueError, match="ended after 3 batches of 64 tokens"):
        train([config()], iter([activations(200)]))
