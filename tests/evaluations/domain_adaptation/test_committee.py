"""PACMAC's committee on encoders of every kind of position: views, selection, and what a step learns."""

from __future__ import annotations

import pytest
import torch

from adpe.errors import UserError
from adpe.evaluations.domain_adaptation.pacmac import Committee, DomainClassifier, View, committee_views
from adpe.models.vit import VisionTransformer


def classifier(drop_path_rate: float = 0.0, **options) -> DomainClassifier:
    torch.manual_seed(0)
    encoder = VisionTransformer(
        16, 4, embed_dim=24, depth=3, num_heads=3, num_classes=5, drop_path_rate=drop_path_rate, **options
    )
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    encoder.fc_norm.weight.data.fill_(1.0)
    return DomainClassifier(encoder)


def test_views_are_disjoint_and_share_out_all_patches() -> None:
    attention = torch.rand(3, 16)
    views = committee_views(attention, 4, 0.75)
    assert torch.equal(torch.cat([view.kept for view in views], 1).sort(1).values, torch.arange(16).expand(3, -1))
    assert torch.equal(sum(1 - view.mask for view in views), torch.ones(3, 16))
    # Ranks 0, 4, 8, 12 of the attention, then every third of what is left.
    order = attention.argsort(1, descending=True)
    assert torch.equal(views[0].kept, order[:, ::4])
    with pytest.raises(UserError, match="committee of 5 views"):
        committee_views(attention, 5, 0.75)


@pytest.mark.parametrize(
    "options",
    [{}, {"position": "relative"}, {"position": "relative_interpolated"}, {"class_token": False},
     {"position": "relative", "class_token": False}, {"num_class_tokens": 3}],
)  # fmt: skip
def test_kept_patches_stay_where_they_are(options: dict) -> None:
    """A view of all patches, in any order, gives the logits of the whole image; with less of them it does not."""
    model = classifier(**options).eval()
    images = torch.randn(2, 3, 16, 16)
    order = torch.stack([torch.randperm(16) for _ in range(2)])
    view = View(torch.zeros(2, 16), order)
    with torch.no_grad():
        whole, kept = model(images), model.classify(model.of_view(images, view))
        torch.testing.assert_close(kept, whole, rtol=1e-4, atol=1e-4)
        part = model.classify(model.of_view(images, View(view.mask, order[:, :4])))
        shuffled = model.classify(model.of_view(images, View(view.mask, order[:, :4].flip(1))))
    assert float((part - whole).abs().max()) > 1e-2
    torch.testing.assert_close(part, shuffled, rtol=1e-4, atol=1e-4)
    attention = model.patch_attention(images)
    assert attention.shape == (2, 16) and bool((attention > 0).all()) and bool((attention.sum(1) < 1.0001).all())


def test_encoders_that_cannot_drop_patches() -> None:
    for options in ({"window_size": 2, "class_token": False}, {"use_rel_pos_bias": True}):
        with pytest.raises(UserError, match="cannot drop patches"):
            classifier(**options)
    with pytest.raises(UserError, match="class token"):
        DomainClassifier(VisionTransformer(16, 4, embed_dim=24, depth=1, num_heads=3, class_token=False),
                         torch.nn.Linear(24, 5))  # fmt: skip


def test_a_step_lowers_the_loss_of_a_batch() -> None:
    model, rule = classifier().train(), Committee(threshold=0.2)
    source, clean, augmented = torch.randn(3, 8, 3, 16, 16).unbind()
    labels = torch.arange(8) % 5
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    losses = []
    for _ in range(20):
        step = rule.step(model, source, labels, clean, augmented)
        losses.append(float(step.source.detach()))
        optimizer.zero_grad()
        step.loss.backward()
        optimizer.step()
    assert losses[-1] < 0.7 * losses[0]


def test_confidence_alone_learns_whole_images() -> None:
    """No view is asked: what is confident is selected, and its own augmented image has the gradient."""
    model, rule = classifier().eval(), Committee(views=0, threshold=0.35)
    source, clean, augmented = torch.randn(3, 8, 3, 16, 16).unbind()
    step = rule.step(model, source, torch.zeros(8, dtype=torch.long), clean, augmented)
    found = step.selection
    confidence, pseudo = model(clean).softmax(1).max(1)
    assert torch.equal(found.selected, confidence > 0.35) and 0 < int(found.selected.sum()) < 8
    assert not found.views and bool(found.agreed.all()) and not bool(found.consistent.any())
    torch.testing.assert_close(found.chosen, model(augmented))
    own = torch.nn.functional.cross_entropy(found.chosen[found.selected], pseudo[found.selected], label_smoothing=0.1)
    torch.testing.assert_close(step.target, 0.1 * found.selected.float().mean() * own)


def test_random_views_and_probe_mode() -> None:
    model = classifier(drop_path_rate=0.9).train()
    source, clean, augmented = torch.randn(3, 8, 3, 16, 16).unbind()
    labels = torch.zeros(8, dtype=torch.long)

    def views(seed: int, **options) -> torch.Tensor:
        torch.manual_seed(seed)
        step = Committee(**options).step(model, source, labels, clean, augmented)
        assert model.training
        return step.selection.views[0].mask

    assert torch.equal(views(0, probe_mode="eval"), views(1, probe_mode="eval"))
    assert not torch.equal(views(0, probe_mode="train"), views(1, probe_mode="train"))
    assert not torch.equal(views(0, probe_mode="eval", seeding=False), views(1, probe_mode="eval", seeding=False))


def test_confident_images_without_an_agreeing_view() -> None:
    """Dropped, or counted with logits of zero: ln(classes) each, and a share that is larger."""
    model = classifier().eval()
    source, clean, augmented = torch.randn(3, 12, 3, 16, 16).unbind()
    labels = torch.zeros(12, dtype=torch.long)
    steps = {mode: Committee(threshold=0.0, no_agreement=mode).step(model, source, labels, clean, augmented)
             for mode in ("drop", "reference")}  # fmt: skip
    found = steps["drop"].selection
    disagreeing = int((found.selected & ~found.agreed).sum())
    assert 0 < disagreeing < 12
    expected = 0.1 * disagreeing / 12 * torch.log(torch.tensor(5.0))
    torch.testing.assert_close(steps["reference"].target - steps["drop"].target, expected)
