import pytest
import torch

from dictionary_learning import AutoEncoderTopK, TopKTrainer, TrainerTopK
from dictionary_learning.errors import ConfigError, UnknownNameError
from dictionary_learning.latents import SparseLatents, Support
from dictionary_learning.trainers._batch import Batch, StepPart
from dictionary_learning.trainers._dead_latents import DeadLatents
from dictionary_learning.trainers._losses import auxk_loss
from dictionary_learning.trainers._schedules import WarmupDecay, annealed_k
from dictionary_learning.trainers._top_k_family import smallest_of_batch, smallest_per_token
from tests.tiny import Planted


def trainer(**options) -> TrainerTopK:
    return TrainerTopK(**{"activation_dim": 32, "dict_size": 96, "k": 3, "steps": 100, "device": "cpu", **options})


def state(t: TrainerTopK) -> list[torch.Tensor]:
    found = [*t.dictionary.state_dict().values(), t.dead.tokens_since_fired, t.loss_scale]
    return [tensor.clone() for tensor in found]


def test_encoder_rows_are_free():
    t = trainer()
    t.update(0, Planted().batch(64))
    assert not torch.allclose(t.dictionary.W_enc.norm(dim=1), torch.ones(96))


def test_decoder_bias_begins_as_the_geometric_median():
    t = trainer()
    x = Planted().batch(500)
    t.initialize(x)
    assert (t.dictionary.b_dec - x.median(0).values).norm() < 0.2 * x.norm(dim=-1).mean()
    moved = t.dictionary.b_dec.clone()
    t.initialize(x + 5)  # only the first call does anything
    assert torch.equal(t.dictionary.b_dec, moved)


def test_encoder_begins_at_the_best_scale():
    t = trainer(scale_encoder=True)
    x = Planted().batch(500)
    t.initialize(x)

    def error(scale: float) -> float:
        d = t.dictionary
        latents = d.encode_sparse(x)
        return (scale * d.decode_latents(latents, x) - (scale - 1) * d.b_dec - x).pow(2).sum().item()

    assert error(1.0) < min(error(0.97), error(1.03))


class TestAuxK:
    def aged(self, **options) -> tuple[TrainerTopK, torch.Tensor]:
        """Returns a trainer in which latents 0 to 39 are dead, at a decoder bias far from zero."""
        t = trainer(**{"dead_feature_threshold": 1000, "k_aux": 8, **options})
        x = Planted().batch(256)
        t.initialize(x)
        t.dictionary.b_dec.data.add_(1)
        t.dead.tokens_since_fired[:40] = 5000
        t.dead.n_tokens = 5000
        t.dead.observe((torch.arange(96) >= 40).long(), 10)
        t.revival.mean_error = t.loss(x).error.detach()
        assert t.dead.indices.tolist() == list(range(40))
        return t, x

    def test_equals_a_loss_written_by_hand(self):
        t, x = self.aged()
        d = t.dictionary
        loss = t.loss(x)
        residual = x - loss.reconstruction.outputs
        pre = ((x - d.b_dec) @ d.W_enc[:40].T + d.b_enc[:40]).relu()
        values, indices = pre.topk(8)
        predicted = torch.zeros_like(pre).scatter(1, indices, values) @ d.W_dec[:40]  # no bias
        error = (residual - predicted).pow(2).sum(-1).mean()
        expected = error / t.revival.mean_error  # a constant of the step, so that parts of a batch add up
        torch.testing.assert_close(loss.terms["auxk_loss"], expected)
        total = loss.terms["l2_loss"] * t.loss_scale + expected / 32
        torch.testing.assert_close(loss.total, total)

    def test_moves_only_dead_latents(self):
        t, x = self.aged()
        t.loss(x).terms["auxk_loss"].backward()
        d = t.dictionary
        for gradient in (d.W_enc.grad, d.W_dec.grad):
            assert gradient[:40].abs().sum() > 0
            assert gradient[40:].abs().sum() == 0
        assert d.b_dec.grad is None

    def test_lowers_the_error_that_it_is_told_of(self):
        t, x = self.aged()
        optimizer = torch.optim.SGD(t.dictionary.parameters(), 0.05)
        first = t.loss(x).terms["auxk_loss"]
        for _ in range(30):
            optimizer.zero_grad()
            loss = t.loss(x).terms["auxk_loss"]
            loss.backward()
            optimizer.step()
        assert loss < 0.98 * first

    def test_is_scaled_down_while_few_are_dead(self):
        t, x = self.aged()
        many = t.loss(x).terms["auxk_loss"].item()
        t, x = self.aged(k_aux=80)  # of 40 dead
        wide = t.loss(x).terms["auxk_loss"].item()
        assert wide < 0.75 * many

    def test_coefficient_counts_once(self):
        one, x = self.aged(auxk_alpha=0.1)
        two, _ = self.aged(auxk_alpha=0.2)
        zero, _ = self.aged(auxk_alpha=0.0)
        base = zero.loss(x).total
        torch.testing.assert_close(two.loss(x).total - base, 2 * (one.loss(x).total - base), rtol=1e-3, atol=1e-5)

    def test_every_second_token_is_a_smaller_batch(self):
        """The loss of the tokens that are looked at, and gradients from them alone."""
        t, x = self.aged(auxk_every=2)
        loss = t.loss(x)
        residual = (x - loss.reconstruction.outputs).detach()
        expected = auxk_loss(
            t.dictionary, x[::2], residual[::2], t.dead.indices, t.settings.k_aux, t.revival.mean_error
        )
        torch.testing.assert_close(loss.terms["auxk_loss"], expected)
        with pytest.raises(ConfigError, match="auxk_every is 0"):
            trainer(auxk_every=0)

    def test_no_error_left_gives_a_finite_loss(self):
        t, _ = self.aged()
        assert torch.isfinite(t.loss(t.dictionary.b_dec.detach().expand(8, -1).clone()).total)


def test_multi_topk_adds_the_wide_loss():
    plain, multi = trainer(), trainer(multi_topk=True)
    x = Planted().batch(128)
    for t in (plain, multi):
        t.initialize(x)
    d, loss = multi.dictionary, multi.loss(x)
    wide = d.decode_latents(d.encode_sparse(x, 12), x)
    expected = plain.loss(x).total + (wide - x).pow(2).sum(-1).mean() * multi.loss_scale / 8
    torch.testing.assert_close(loss.total, expected)
    assert loss.reconstruction.latents.indices.shape == (128, 3)  # the narrow ones count as fired


def test_k_anneals_to_its_value():
    assert [annealed_k(4, 32, step, 7) for step in (0, 7, 100)] == [32, 4, 4]
    assert sorted((annealed_k(4, 32, s, 7) for s in range(8)), reverse=True) == [
        annealed_k(4, 32, s, 7) for s in range(8)
    ]
    t = trainer(k_anneal_steps=5)
    x = Planted().batch(64)
    assert t.annealed_k.now == 32
    for _ in range(5):
        t.update(t.step, x)
    assert t.annealed_k.now == 3 == t.dictionary.k
    with pytest.raises(ConfigError, match="k_anneal_steps is 0"):
        trainer(k_anneal_steps=0)


class TestThreshold:
    def test_is_learnt_from_the_first_step_on(self):
        t = trainer(threshold_start_step=2)
        data = Planted()
        seen = []
        for x in data.batches(6):
            least = t.loss(x).reconstruction.latents.values.detach() if t.step else None
            t.update(t.step, x)
            if least is not None:
                seen.append(float(least.amin(-1).mean()))
        assert float(t.dictionary.threshold) == pytest.approx(sum(seen[1:]) / len(seen[1:]), rel=1e-4)

    def test_fires_as_often_as_top_k(self):
        t = trainer(steps=200, lr=3e-3)
        data = Planted()
        for x in data.batches(200):
            t.update(t.step, x)
        x = data.batch(1000)
        l0 = (t.dictionary.encode(x, use_threshold=True) != 0).sum(-1).float().mean()
        assert 0.6 * 3 < l0 < 1.6 * 3

    def test_survives_rows_without_positive_values(self):
        t = trainer()
        t.update(0, Planted().batch(64))
        before = t.dictionary.threshold.clone()
        nothing = SparseLatents(torch.zeros(5, 3), Support(torch.arange(15).view(5, 3), 96))
        assert smallest_per_token([nothing]) == smallest_of_batch([nothing]) == torch.inf
        loss = t.loss(Planted().batch(5))
        loss = loss._replace(reconstruction=loss.reconstruction._replace(latents=nothing))
        t.after_step([StepPart(Batch(torch.zeros(5, 32), torch.zeros(5, 32)), loss, 1.0)])
        assert torch.equal(before, t.dictionary.threshold)


def test_dead_latents_count_tokens_since_a_positive_firing():
    dead = DeadLatents(3, after_tokens=100, device=torch.device("cpu"))
    dead.observe(torch.tensor([1, 0, 0]), 60)
    assert dead.indices is None
    dead.observe(torch.tensor([0, 0, 3]), 60)
    assert dead.tokens_since_fired.tolist() == [60, 120, 0]
    assert dead.indices.tolist() == [1]
    dead.observe(torch.tensor([0, 1, 0]), 10)
    assert dead.indices is None


def test_dead_latents_of_an_accelerator_are_known_a_look_later():
    """The host never waits: what it copies at one look is used from the next one on. Tried here with the CPU's tensors."""
    dead = DeadLatents(3, after_tokens=10, device=torch.device("cpu"))
    dead.observe(torch.tensor([1, 0, 0]), 60)
    dead._indices = None
    dead._look()
    assert dead.indices is None
    dead.tokens_since_fired.zero_()
    state = dead.state_dict()
    again = DeadLatents(3, after_tokens=10, device=torch.device("cpu"))
    again.load_state_dict(state)
    for counter in (dead, again):
        counter._look()
        assert counter.indices.tolist() == [1, 2]
        counter._look()
        assert counter.indices is None


def test_learning_rate_of_the_optimizer_is_that_of_the_schedule():
    t = trainer(lr=1.0, warmup_steps=4, decay_start=90)
    x = Planted().batch(64)
    rates = []
    for _ in range(6):
        t.update(t.step, x)
        rates.append([group["lr"] / group["lr_factor"] for group in t.optimizer.param_groups])
    assert rates == [[rate] * 4 for rate in (0.25, 0.5, 0.75, 1.0, 1.0, 1.0)]
    factors = {id(g["params"][0]): g["lr_factor"] for g in t.optimizer.param_groups}
    assert (factors[id(t.dictionary.W_enc)], factors[id(t.dictionary.W_dec)]) == (0.5, 2.0)


def test_default_schedule_makes_room_for_the_warm_up():
    def schedule(**options) -> tuple[int, int]:
        config = trainer(steps=100, **options).config
        return config["warmup_steps"], config["decay_start"]

    assert schedule() == (10, 20)
    assert schedule(warmup_steps=50) == (50, 50)
    assert schedule(decay_start=5) == (5, 5)
    assert schedule(warmup_steps=0, decay_start=100) == (0, 100)
    with pytest.raises(ConfigError, match="warmup_steps=200"):
        schedule(warmup_steps=200)


def test_schedule_rises_stays_and_falls_and_is_never_zero():
    schedule = WarmupDecay(10, 2, 8)
    assert [schedule(t) for t in range(10)] == [0.5, 1, 1, 1, 1, 1, 1, 1, 1, 0.5]
    assert WarmupDecay(3, 0, 3)(0) == 1
    with pytest.raises(ConfigError, match="warmup_steps=9"):
        WarmupDecay(10, 9, 8)


def test_known_names_and_options_are_taken():
    assert TopKTrainer is TrainerTopK
    t = TrainerTopK(
        steps=10, activation_dim=8, dict_size=16, k=2, layer=3, lm_name="m", dict_class=AutoEncoderTopK, lr=None, auxk_alpha=1 / 32,
        warmup_steps=1, decay_start=None, threshold_beta=0.999, threshold_start_step=1000, k_anneal_steps=None, seed=0, device="cpu",
        wandb_name="w", submodule_name="s",
    )  # fmt: skip
    assert isinstance(t.ae, AutoEncoderTopK)
    known = (
        "trainer_class dict_class lr steps auxk_alpha warmup_steps decay_start threshold_beta threshold_start_step seed "
        "activation_dim dict_size k device layer lm_name wandb_name submodule_name"
    )
    assert set(known.split()) <= t.config.keys()


def test_wrong_options_are_refused():
    with pytest.raises(UnknownNameError, match="Did you mean 'dict_size'"):
        trainer(dictsize=3)
    with pytest.raises(ConfigError, match="cannot keep k=100 of dict_size=96"):
        trainer(k=100)
    with pytest.raises(ConfigError, match="needs activation_dim and steps"):
        TrainerTopK(k=3)


def test_rare_latents_are_dead_where_the_threshold_is_a_frequency():
    """By the share of the last whole window, not by the time since they fired."""
    t = trainer(dead_feature_threshold=0.02, feature_sampling_window=200)
    assert t.dead.after_tokens == 10_000_000
    dead = DeadLatents(3, 10_000, torch.device("cpu"), min_frequency=0.02, window=200)
    for firings in ([50, 1, 0], [50, 2, 3]):
        assert dead.indices is None
        dead.observe(torch.tensor(firings), 100)
    assert dead.indices.tolist() == [1, 2]  # 3 of 200 is below 0.02, 4 would not be
    again = DeadLatents(3, 10_000, torch.device("cpu"), min_frequency=0.02, window=200)
    again.load_state_dict(dead.state_dict())
    for one in (dead, again):
        one.observe(torch.tensor([0, 4, 9]), 150)
        assert one.indices.tolist() == [1, 2]
        one.observe(torch.tensor([0, 4, 9]), 50)
        assert one.indices.tolist() == [0]
    with pytest.raises(ConfigError, match="above 0"):
        trainer(dead_feature_threshold=0)


def test_window_in_tokens_goes_by_its_own_name():
    assert trainer(dead_feature_window=5000, dead_feature_threshold=1e-6).dead.after_tokens == 5000
