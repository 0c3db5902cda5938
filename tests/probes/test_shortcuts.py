"""Maps from moments: planted maps are found, noise is called noise, and a lens through them reads as it should."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import xarray as xr

import lens
from lens.base.errors import InputError
from lens.moments import Accumulator, Moments
from lens.probes.shortcuts import (
    RIDGES,
    AffineMap,
    fit_shortcuts,
    held_out_null,
    in_sample_null,
    load_shortcuts,
    noise_floor,
    solve_ridge,
)
from tests.models.families import build


def moments_of(*states: torch.Tensor, **source) -> Moments:
    """Moments of layers given as `[token, d]`, float64-exact enough: gathered in one float64-friendly flush."""
    stack = torch.stack(states)
    layers = len(states)
    pairs = [(i, j) for j in range(layers) for i in range(j)]
    into = Accumulator(stack.mean(1).float(), torch.full((layers,), torch.inf), pairs, drop_first=False, source=source)
    exact = stack.double()
    centred = exact - exact.mean(1, keepdim=True)
    return replace(
        into.moments,
        count=stack.shape[1],
        mean=exact.mean(1),
        within={i: centred[i].T @ centred[i] for i in range(layers)},
        across={(i, j): centred[i].T @ centred[j] for i, j in pairs},
    )


def noise(n: int, d: int, seed: int) -> Moments:
    generator = torch.Generator().manual_seed(seed)
    return moments_of(*(torch.randn(n, d, generator=generator, dtype=torch.float64) for _ in range(2)))


def test_planted_affine_map_is_found():
    x = torch.randn(2000, 64, dtype=torch.float64)
    planted, offset = torch.randn(64, 64, dtype=torch.float64), torch.randn(64, dtype=torch.float64)
    found = fit_shortcuts(moments_of(x, x @ planted + offset), ridge=0.0)
    assert (found.maps[0, 1].matrix - planted).abs().max() < 1e-9
    score = found.score(moments_of(x[:500], x[:500] @ planted + offset))
    assert score.r2_pooled.item() == pytest.approx(1, abs=1e-6)
    assert score.r2_uniform.item() == pytest.approx(1, abs=1e-6)
    assert torch.allclose(found.maps[0, 1](x[:9].float()), (x[:9] @ planted + offset).float(), atol=1e-4)


@pytest.mark.parametrize("d", [10, 100, 400])
def test_in_sample_score_of_noise_is_its_null_level(d: int):
    scores = []
    for seed in range(10):
        m = noise(1000, d, seed)
        scores.append(fit_shortcuts(m, ridge=0.0).score(m).r2_pooled.item())
    assert np.mean(scores) == pytest.approx(in_sample_null(1000, d), abs=0.005)


def test_held_out_score_of_noise_is_its_null_level():
    fitted = [fit_shortcuts(noise(1000, 100, seed), ridge=0.0).score(noise(5000, 100, 100 + seed)) for seed in range(10)]
    assert np.mean([score.r2_pooled.item() for score in fitted]) == pytest.approx(-0.1125, abs=0.015)
    assert fitted[0].null_r2.item() == pytest.approx(held_out_null(1000, 100), abs=1e-6)
    assert held_out_null(1000, 100) == pytest.approx(-0.1125, abs=0.002)


def test_score_from_moments_equals_score_from_predictions():
    generator = torch.Generator().manual_seed(3)
    x, test = (torch.randn(n, 12, generator=generator, dtype=torch.float64) + 1 for n in (300, 90))
    planted = torch.randn(12, 12, generator=generator, dtype=torch.float64)

    def output(x: torch.Tensor) -> torch.Tensor:
        return x @ planted + torch.randn(x.shape, generator=generator, dtype=torch.float64)

    y, answer = output(x), output(test)
    found = fit_shortcuts(moments_of(x, y), ridge=1e-3)
    fitted = found.maps[0, 1]
    error = ((test - fitted.mean_from) @ fitted.matrix + fitted.mean_to - answer) ** 2
    total = (answer - answer.mean(0)) ** 2
    score = found.score(moments_of(test, answer))
    assert score.r2_pooled.item() == pytest.approx(float(1 - error.sum() / total.sum()), rel=1e-5)
    assert score.r2_uniform.item() == pytest.approx(float((1 - error.sum(0) / total.sum(0)).mean()), rel=1e-5)
    unchanged = ((test - answer) ** 2).sum()
    assert score.identity_r2_pooled.item() == pytest.approx(float(1 - unchanged / total.sum()), rel=1e-5)


def test_rank_deficient_states_are_no_trouble():
    """Rows that sum to 0, as LayerNorm gives them: the scatter matrix is singular."""
    x = torch.randn(500, 20, dtype=torch.float64)
    x = x - x.mean(1, keepdim=True)
    y = x @ torch.randn(20, 20, dtype=torch.float64)
    for ridge in (0.0, 1e-8):
        m = moments_of(x, y)
        assert (fit_shortcuts(m, ridge=ridge).score(m).r2_pooled.item()) > 1 - 1e-6
    singular = torch.zeros(3, 3, dtype=torch.float64)
    singular[0, 0] = 2.0
    assert torch.equal(solve_ridge(singular, singular, 0.0), torch.diag(torch.tensor([1.0, 0, 0], dtype=torch.float64)))


def test_ridge_is_chosen_on_validation():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 40, generator=generator, dtype=torch.float64)
    y = x[:, :1].expand(-1, 40) + torch.randn(60, 40, generator=generator, dtype=torch.float64)
    v = torch.randn(4000, 40, generator=generator, dtype=torch.float64)
    check = moments_of(v, v[:, :1].expand(-1, 40) + torch.randn(4000, 40, generator=generator, dtype=torch.float64))
    chosen = fit_shortcuts(moments_of(x, y), ridge=None, validation=check)
    scores = {r: (fit_shortcuts(moments_of(x, y), ridge=r).score(check).r2_pooled.item()) for r in RIDGES}
    assert chosen.ridge[0, 1] == max(scores, key=scores.__getitem__) == 0.1


def test_maps_of_a_linear_chain_compose():
    x = torch.randn(400, 8, dtype=torch.float64)
    first, second = (torch.eye(8) + 0.3 * torch.randn(8, 8) for _ in range(2))
    y = x @ first.double()
    found = fit_shortcuts(moments_of(x, y, y @ second.double()), ridge=0.0)
    composed = found.maps[0, 1].matrix @ found.maps[1, 2].matrix
    assert (composed - found.maps[0, 2].matrix).abs().max() < 1e-6


def test_too_few_tokens_and_missing_pairs_are_refused():
    with pytest.raises(InputError, match="100 tokens"):
        fit_shortcuts(noise(100, 100, 0))
    with pytest.raises(InputError, match="lack the pairs"):
        fit_shortcuts(noise(100, 10, 0), pairs=[(0, 2)])
    with pytest.raises(InputError, match="No ridge and no validation"):
        fit_shortcuts(noise(100, 10, 0), ridge=None)


@pytest.fixture
def fitted(tiny):
    """Shortcuts of the tiny model over random texts, by way of moments of its own states."""
    ids = torch.randint(4, 128, (40, 32))
    states = torch.cat([tiny.run(row.tolist()).residual for row in ids], dim=1)
    return fit_shortcuts(moments_of(*states, model=tiny.name, model_fingerprint=tiny.fingerprint, layers=3), ridge=1e-6)


def test_lens_through_identity_maps_is_the_plain_lens(tiny, fitted):
    width = tiny.d_model
    unit = AffineMap(torch.eye(width), torch.zeros(width), torch.zeros(width))
    run = tiny.run("w3 w1 w4 w1 w5")
    same = lens.logit_lens(run, replace(fitted, maps=dict.fromkeys(fitted.maps, unit)))
    plain = lens.logit_lens(run)
    assert (same.token_id == plain.token_id).all()
    assert np.allclose(same.kl_to_final, plain.kl_to_final, atol=1e-4)
    assert (same.attrs["lens"], plain.attrs["lens"]) == ("shortcut", "plain")


def test_lens_through_maps_reads_the_mapped_states_and_leaves_the_last_layer(tiny, fitted):
    run = tiny.run("w3 w1 w4 w1 w5")
    found = lens.logit_lens(run, fitted)
    expected = tiny.unembed(fitted.maps[1, 3](run.residual[1])).log_softmax(-1).topk(5)
    assert np.allclose(found.logprob.sel(layer=1), expected.values, atol=1e-4)
    assert (found.kl_to_final.isel(layer=-1) == 0).all()


def test_saved_and_read_again(tiny, fitted, tmp_path):
    again = load_shortcuts(fitted.save(tmp_path / "maps.safetensors"), tiny)
    assert again.pairs == fitted.pairs
    assert (again.ridge, again.error) == (dict(fitted.ridge), dict(fitted.error))
    assert again.source == dict(fitted.source)
    assert torch.equal(again.maps[0, 3].matrix, fitted.maps[0, 3].matrix.float())


def test_another_model_is_refused(fitted, tokenizer, tmp_path):
    other = lens.load(build("llama", seed=7), tokenizer)
    with pytest.raises(InputError, match="were fitted on"):
        lens.logit_lens(other.run("w1 w2"), fitted)
    with pytest.raises(InputError, match="were fitted on"):
        load_shortcuts(fitted.save(tmp_path / "maps.safetensors"), other)
    (tmp_path / "no.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match="holds no shortcuts"):
        load_shortcuts(tmp_path / "no.safetensors", other)


def test_scores_go_through_netcdf(fitted, tmp_path):
    x = torch.randn(300, 32, dtype=torch.float64)
    score = fitted.score(moments_of(x, x, x, x))
    score.to_netcdf(tmp_path / "score.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "score.nc", engine="h5netcdf") as again:
        xr.testing.assert_identical(again.load(), score)


def test_smollm2_shortcuts_read_held_out_prose_better_than_the_plain_lens(smollm2):
    """Fitted on 3,000 tokens of one part of Wikipedia, read on an article of another."""
    corpus = lens.corpus("wikipedia")
    moments = lens.collect_moments(smollm2, corpus, tokens=3072, pairs="both")
    pairs = [(layer, 30) for layer in range(30)]
    shortcuts = fit_shortcuts(moments.train, ridge=None, validation=moments.validation, pairs=pairs)
    text = corpus.part("test")[0].text
    run = smollm2.run(smollm2.encode_bare(text)[:96])
    plain, mapped = lens.logit_lens(run), lens.logit_lens(run, shortcuts)
    for layer in (5, 10, 15, 20, 25):
        assert float(mapped.kl_to_final.sel(layer=layer).mean()) < float(plain.kl_to_final.sel(layer=layer).mean()) / 2
        agreement = [
            float((d.token_id.sel(layer=layer, rank=1) == d.token_id.sel(layer=30, rank=1)).mean()) for d in (plain, mapped)
        ]
        assert agreement[1] > agreement[0] + 0.05
    scores = shortcuts.score(moments.test)
    assert (scores.r2_pooled > scores.identity_r2_pooled + 0.1).all()
    assert (scores.r2_pooled > scores.null_r2).all()


def test_without_bias_it_is_least_squares_through_the_origin():
    """As scikit-learn's `LinearRegression(fit_intercept=False)`, which the paper uses."""
    x = torch.randn(500, 6, dtype=torch.float64) + 3
    y = x @ torch.randn(6, 6, dtype=torch.float64) + 5 + 0.1 * torch.randn(500, 6, dtype=torch.float64)
    found = fit_shortcuts(moments_of(x, y), ridge=0.0, bias=False)
    expected = torch.linalg.lstsq(x, y).solution
    assert (found.maps[0, 1].matrix - expected).abs().max() < 1e-9
    assert found.maps[0, 1](torch.zeros(1, 6, dtype=torch.float64)).abs().max() == 0
    optimism = (1 - held_out_null(500, 6)) / (1 - in_sample_null(500, 6))
    assert found.error[0, 1] == pytest.approx(optimism * float((x @ expected - y).square().sum(1).mean()), rel=1e-9)


@pytest.mark.parametrize("own", [True, False])
def test_error_is_what_to_expect_on_other_text(own: bool):
    """Noise of variance 1 in 40 coordinates, 200 tokens: 40·200/159 elsewhere, far above the error of the fit itself."""
    planted, found = torch.randn(40, 40, dtype=torch.float64), []
    for _ in range(20):
        train, other = (
            torch.randn(2, 400, 40, dtype=torch.float64).split(200, dim=1)[0],
            torch.randn(2, 4000, 40, dtype=torch.float64),
        )
        moments, validation = (moments_of(x, x @ planted + noise) for x, noise in (train, other))
        found.append(fit_shortcuts(moments, ridge=0.0, validation=None if own else validation).error[0, 1])
    assert np.mean(found) == pytest.approx(40 * 200 / 159, rel=0.03)


def test_noise_floor_is_the_score_of_shuffled_tokens():
    """Perfectly linear but for the shuffling: the shuffled pair and the analytic null agree."""

    def gathered(seed: int) -> Moments:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(4000, 50, generator=generator)
        states = torch.stack([x, 3 * x])  # perfectly linear, but not across tokens
        limits = torch.full((2,), torch.inf)
        into = Accumulator(torch.zeros(2, 50), limits, [(0, 1)], drop_first=False, source={}, shuffled=[(0, 1)])
        into.add(states[:, None].clone())
        into.flush()
        return into.moments

    train, test = gathered(0), gathered(1)
    assert float(fit_shortcuts(train).score(test).r2_pooled[0]) > 0.999
    found = noise_floor(train, test, ridge=0.0)
    assert float(found.shuffled_r2[0]) == pytest.approx(float(found.null_r2[0]), abs=0.004)
    assert float(found.shuffled_r2_in_sample[0]) == pytest.approx(50 / 3999, abs=0.004)
    with pytest.raises(InputError, match="0 shuffled pairs"):
        noise_floor(noise(100, 10, 0), noise(100, 10, 1))


def test_strangeness_is_the_error_on_this_text_over_that_of_the_fit(tiny, fitted):
    run = tiny.run("w3 w1 w4 w1 w5 w9")
    found = fitted.strangeness(run)
    assert found.layer.values.tolist() == [0, 1, 2]
    for layer in range(3):
        wrong = fitted.maps[layer, 3](run.residual[layer]) - run.residual[3]
        expected = wrong[1:].square().sum(1).mean() / fitted.error[layer, 3]
        assert float(found.sel(layer=layer)) == pytest.approx(float(expected), rel=1e-5)
    with pytest.raises(InputError, match="1 tokens"):
        fitted.strangeness(tiny.run([5]))


def test_prose_is_strange_to_a_fit_on_docstrings(smollm2):
    """What warns a reader: about 1 on text of the fitted kind, above 2 on text for which the maps are of little use."""
    fitted = fit_shortcuts(
        lens.collect_moments(smollm2, lens.corpus("docstrings"), tokens=3072, pairs="to_final").train, ridge=1e-2
    )

    def strangeness(corpus: str) -> float:
        documents = [d.text for d in lens.corpus(corpus).part("test") if len(d.text) > 500][:2]
        runs = [smollm2.run(smollm2.encode_bare(text)[:96], logits=False) for text in documents]
        return float(np.mean([fitted.strangeness(run).median() for run in runs]))

    assert strangeness("docstrings") < 2 < strangeness("wikipedia")


def test_maps_of_parts_of_the_blocks(tiny):
    """What enters and leaves an MLP are states b and 3 + b; each map can stand for its block, and none leads to the end."""
    words = np.random.default_rng(5).integers(4, 128, (80, 40))
    corpus = lens.corpus([" ".join(f"w{word}" for word in row) for row in words])
    moments = lens.collect_moments(tiny, corpus, tokens=1500, parts=("residual", "mlp"), window=40)
    found = fit_shortcuts(moments["mlp"].train)
    assert (found.of_part, found.pairs, found.layers) == ("mlp", ((0, 3), (1, 4), (2, 5)), ())
    assert sorted(found.stand_ins) == [0, 1, 2]
    score = found.score(moments["mlp"].test)
    assert score.block.values.tolist() == [0, 1, 2]
    assert "to_layer" not in score.coords
    whole = fit_shortcuts(moments.train)
    assert whole.stand_ins[1] is whole.maps[1, 2]
    with pytest.raises(InputError, match="no moments of 'attention'"):
        moments["attention"]
