"""What a run holds, what it costs, and what it refuses."""

from __future__ import annotations

import gc
import threading

import psutil
import pytest
import torch

import lens
from lens.base.errors import InputError, MemoryEstimateError
from lens.models.run import require_memory
from tests.models.families import build

TEXT = "w3 w1 w4 w1 w5"


def test_tokens_are_the_tokenizers_own(tiny):
    run = tiny.run(TEXT)
    assert run.tokens == ("w3", "w1", "w4", "w1", "w5")
    assert run.token_ids.tolist() == tiny.tokenizer(TEXT)["input_ids"]
    assert run.text == TEXT
    assert len(run) == 5


def test_special_tokens_are_visible(tiny):
    assert tiny.run(TEXT, prompt="bos").tokens[0] == "<bos>"
    assert tiny.run(f"<bos> {TEXT}", prompt="bos").tokens.count("<bos>") == 1


def test_token_ids_are_used_as_they_are(tiny):
    run = tiny.run([1, 5, 9])
    assert run.token_ids.tolist() == [1, 5, 9]
    assert run.text is None


def test_a_tensor_of_ids_is_as_good_as_a_list(tiny):
    assert tiny.run(torch.tensor([1, 5, 9])).token_ids.tolist() == [1, 5, 9]


def test_without_logits_the_residual_stream_is_the_same(tiny):
    bare = tiny.run(TEXT, logits=False)
    assert bare.logits is None
    assert torch.equal(bare.residual, tiny.run(TEXT).residual)


def test_no_tensor_asks_for_gradients(tiny):
    run = tiny.run(TEXT, attention=True)
    assert not any(t.requires_grad for t in (run.residual, run.logits, run.attention))


def test_a_later_edit_of_the_model_does_not_reach_a_run(tiny):
    run = tiny.run(TEXT)
    kept = run.residual.clone()
    with torch.no_grad():
        tiny.module.model.embed_tokens.weight.zero_()
    assert torch.equal(run.residual, kept)


def test_repeated_runs_do_not_grow_memory(smollm2):
    process = psutil.Process()
    for _ in range(3):
        smollm2.run("The quick brown fox jumps over the lazy dog")
    gc.collect()
    before = process.memory_info().rss
    for _ in range(15):
        smollm2.run("The quick brown fox jumps over the lazy dog")
    gc.collect()
    assert process.memory_info().rss - before < 20e6  # one run's logits and states are 3 MB


def test_text_of_a_byte_level_vocabulary_round_trips(smollm2):
    text = "Zoë paid 12 € for tea – 3 cups"
    run = smollm2.run(text)
    joined = "".join(run.tokens)
    assert "�" not in joined
    spelled = bytes(joined.encode("utf-8"))
    for byte in range(256):
        spelled = spelled.replace(f"<0x{byte:02X}>".encode(), bytes([byte]))
    assert spelled.decode("utf-8") == text
    assert {"1", "2"} <= set(run.tokens)  # digits stand alone


def test_chat_template_wraps_the_text(smollm2):
    plain, chat = smollm2.run("Who are you?"), smollm2.run("Who are you?", prompt="chat")
    assert "<|im_start|>" in chat.tokens
    assert "<|im_start|>" not in plain.tokens
    assert smollm2.run("Who", prompt="bos").tokens == ("<|im_start|>", "Who")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "The text is empty"),
        ([], "No token ids"),
        ([3, 128], "Token id 128 is not in the vocabulary.*0 to 127"),
        ([-1], "Token id -1"),
        ([5] * 65, "65 tokens.*at most 64"),
        ([1.5, 2], "flat list of token ids"),
        ([True, False], "flat list of token ids"),
        ([[3, 4]], "flat list of token ids"),
        (["a"], "flat list of token ids"),
        (torch.tensor([[3, 4]]), "flat list of token ids"),
        (b"w1", "flat list of token ids"),
    ],
)
def test_unusable_input_is_refused_with_its_own_words(tiny, text, message: str):
    with pytest.raises(InputError, match=message):
        tiny.run(text)


def test_text_without_a_tokenizer_is_refused():
    model = lens.load(build("llama"))
    with pytest.raises(InputError, match="has no tokenizer"):
        model.run("w1")
    assert model.run([1, 2]).tokens == ("#1", "#2")


def test_prompt_form_that_the_tokenizer_lacks_is_refused(tiny):
    with pytest.raises(InputError, match="no chat template"):
        tiny.run(TEXT, prompt="chat")


def test_too_large_a_result_is_refused_before_it_is_made():
    with pytest.raises(MemoryEstimateError, match=r"would take 2\.00 GiB.*at most 1 GiB"):
        require_memory("The logits", 2**31, "logits=False")


def test_logits_above_the_bound_are_refused(smollm2):
    with pytest.raises(MemoryEstimateError, match="logits=False"):
        smollm2.run([1] * 6000)


def test_runs_of_one_module_take_turns(tiny):
    """Two wrappers of one module share its lock; the second thread says nothing until the first is done."""
    other = lens.load(tiny.module, tiny.tokenizer)
    assert other.lock is tiny.lock
    order: list[str] = []
    with tiny.lock.hold("holding"):
        thread = threading.Thread(target=lambda: (other.run(TEXT), order.append("run")))
        thread.start()
        thread.join(timeout=0.2)
        assert thread.is_alive()
        assert tiny.lock.holder == "holding"
        tiny.run(TEXT)  # the holder itself may run
        order.append("released")
    thread.join()
    assert order == ["released", "run"]


def test_fingerprint_follows_weights_buffers_and_configuration(tiny):
    """Rotary frequencies are in no checkpoint, yet in every state."""
    seen = {tiny.fingerprint}
    assert tiny.fingerprint in seen
    with torch.no_grad():
        tiny.module.model.embed_tokens.weight[0, 0] += 1
        seen.add(tiny.fingerprint)
        tiny.module.model.rotary_emb.inv_freq.mul_(2)
        seen.add(tiny.fingerprint)
    tiny.module.config.rms_norm_eps = 0.5
    seen.add(tiny.fingerprint)
    assert len(seen) == 4
