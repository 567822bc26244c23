"""Decoded pictures become squares: what evaluation keeps, and what training draws."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from costs import compare_costs
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torchvision.models import get_model_weights
from torchvision.transforms import functional, v2

from mlfinetune.data.images.transforms import (
    TransformSpec,
    build_eval_transform,
    build_random_crop,
    build_train_transform,
    compute_min_decoded_side,
    to_tensor,
)
from mlfinetune.models.preprocessing import find_preprocessing

SIDE = 64
RESIZES = ("squash", "crop", "pad")
AUGMENTED: dict[str, Any] = {
    "crop_scale": (0.2, 0.9),
    "horizontal_flip": 0.5,
    "color_jitter": 0.4,
    "rand_augment": 2,
}


def spec(**changes: Any) -> TransformSpec:
    """Return a spec of a small square."""
    return TransformSpec(**{"image_size": SIDE, "resize": "squash", "max_pixels": 10**6, **changes})


def noise(height: int, width: int, seed: int = 0) -> Tensor:
    """Return a picture of random pixels, (3, height, width)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)


def pillow(image: Tensor, width: int, height: int) -> Tensor:
    """Pillow's resize, the reference for antialiasing."""
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    return to_tensor(np.array(picture.resize((width, height), Image.Resampling.BILINEAR)))


def assert_close(a: Tensor, b: Tensor) -> None:
    """Equal within two grey levels."""
    torch.testing.assert_close(a.float(), b.float(), rtol=0, atol=2)


def marked() -> Tensor:
    """Black, with a white patch in the upper left corner."""
    image = torch.zeros(3, 200, 200, dtype=torch.uint8)
    image[:, :10, :10] = 255
    return image


# ---- evaluation -------------------------------------------------------------------------


def test_to_tensor_puts_channels_first_uncopied() -> None:
    """(H, W, 3) becomes (3, H, W): the same memory, read the other way."""
    pixels = np.arange(2 * 4 * 3, dtype=np.uint8).reshape(2, 4, 3)
    tensor = to_tensor(pixels)
    assert tensor.shape == (3, 2, 4)
    assert tensor[2, 1, 3] == pixels[1, 3, 2]
    assert tensor.data_ptr() == pixels.ctypes.data


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("size", [(1, 1), (64, 64), (97, 161), (1, 300), (480, 641)])
def test_interleaved_pixels_give_the_bits_of_planes(resize: str, size: tuple[int, int]) -> None:
    """The memory layout of a picture changes the speed and nothing else."""
    planes = noise(*size)
    pixels = to_tensor(planes.permute(1, 2, 0).contiguous().numpy())
    assert torch.equal(
        build_eval_transform(spec(resize=resize))(pixels),
        build_eval_transform(spec(resize=resize))(planes),
    )
    for changes in ({}, AUGMENTED):
        transform = build_train_transform(spec(resize=resize, **changes))
        assert torch.equal(transform(pixels, 3), transform(planes, 3))
        assert transform(pixels, 3).is_contiguous()


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("resize", "wanted"), [("squash", 64), ("crop", 73), ("pad", 64)])
def test_a_picture_may_come_at_twice_the_size_asked_for(
    resize: str, wanted: int, training: bool
) -> None:
    """Whole pictures, training's too where nothing is cropped: twice what the resize makes."""
    assert compute_min_decoded_side(spec(resize=resize), training=training) == 2 * wanted
    assert (
        compute_min_decoded_side(spec(resize=resize, crop_scale=(0.2, 0.9)), training=False)
        == 2 * wanted
    )


@pytest.mark.parametrize("crop_scale", [(0.05, 0.05), (0.35, 1.0), (0.9, 0.9)])
@pytest.mark.parametrize("aspect", [1.0, 1.33, 3.0])
def test_no_random_crop_has_less_than_twice_the_square(
    crop_scale: tuple[float, float], aspect: float
) -> None:
    """Of a picture decoded no smaller than least_side; and no bound is needlessly high."""
    augmented = spec(crop_scale=crop_scale)
    least = compute_min_decoded_side(augmented, training=True)
    crops = v2.RandomResizedCrop(SIDE, scale=crop_scale)
    picture = torch.empty(3, least, round(least * aspect))
    boxes = [crops.make_params([picture]) for _ in range(400)]
    sides = [min(box["height"], box["width"]) for box in boxes]
    assert min(sides) >= 2 * SIDE - 1
    assert least <= 2 * SIDE / (0.75 * crop_scale[0]) ** 0.5 + 1


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize(
    ("height", "width"), [(1, 1), (3, 2), (1, 300), (300, 1), (64, 64), (65, 64), (480, 641)]
)
def test_every_size_becomes_the_square(resize: str, height: int, width: int) -> None:
    """Any picture gives (3, S, S) uint8, contiguous, the same every time."""
    transform = build_eval_transform(spec(resize=resize))
    image = noise(height, width)
    out = transform(image)
    assert out.shape == (3, SIDE, SIDE)
    assert out.dtype == torch.uint8
    assert out.is_contiguous()
    assert torch.equal(out, transform(image))


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize(("height", "width"), [(1, 2000), (2000, 1)])
def test_a_thin_picture_costs_little(resize: str, height: int, width: int) -> None:
    """A line of pixels is not blown up to a million of columns first."""
    transform, thin, plain = (
        build_eval_transform(spec(image_size=224, resize=resize)),
        noise(height, width),
        noise(400, 500),
    )
    assert transform(thin).shape == (3, 224, 224)
    assert compare_costs(lambda: transform(thin), lambda: transform(plain)) < 20


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("size", [(1, 1), (97, 61)])
def test_a_picture_of_one_colour_keeps_it(resize: str, size: tuple[int, int]) -> None:
    """Resizing invents no colours: only the page of `pad` may stand beside the picture's."""
    colour = torch.tensor([10, 200, 77], dtype=torch.uint8)[:, None, None]
    out = build_eval_transform(spec(resize=resize))(colour.expand(3, *size).clone())
    assert torch.equal(out[:, SIDE // 2, SIDE // 2], colour[:, 0, 0])
    if resize != "pad":
        assert (out == colour).all()


@pytest.mark.parametrize(("height", "width"), [(97, 161), (33, 20), (480, 640), (64, 300)])
def test_squash_is_pillows_antialiased_resize(height: int, width: int) -> None:
    """Up or down, both sides to the square, as Pillow would."""
    image = noise(height, width)
    assert_close(build_eval_transform(spec())(image), pillow(image, SIDE, SIDE))


@pytest.mark.parametrize(("height", "width"), [(200, 200), (146, 292), (219, 73), (50, 50)])
def test_crop_is_the_centre_of_pillows_resize(height: int, width: int) -> None:
    """The shorter side becomes 8/7 of the square, and the centre is kept."""
    image, shorter = noise(height, width), 73  # round(64 * 256 / 224)
    scale = shorter / min(height, width)
    resized = pillow(image, round(width * scale), round(height * scale))
    top, left = (round((size - SIDE) / 2) for size in resized.shape[1:])
    expected = resized[:, top : top + SIDE, left : left + SIDE]
    assert_close(build_eval_transform(spec(resize="crop"))(image), expected)


def test_a_square_of_the_right_size_is_left_alone() -> None:
    """Squash and pad change nothing where nothing is to do."""
    image = noise(SIDE, SIDE)
    for resize in ("squash", "pad"):
        assert torch.equal(build_eval_transform(spec(resize=resize))(image), image)


def test_crop_loses_the_corners_and_squash_and_pad_keep_them() -> None:
    """A mark in the corner is visible in all but the center crop."""
    out = {resize: build_eval_transform(spec(resize=resize))(marked()) for resize in RESIZES}
    assert out["crop"].max() == 0
    assert out["squash"][:, 0, 0].min() == 255
    assert out["pad"][:, 0, 0].min() == 255


@pytest.mark.parametrize(("height", "width"), [(100, 200), (200, 100), (30, 40), (5000, 1)])
def test_pad_keeps_the_aspect_ratio(height: int, width: int) -> None:
    """The picture lies in the middle at one scale; the page has the mean colour."""
    image, scale = noise(height, width), SIDE / max(height, width)
    out = build_eval_transform(spec(resize="pad"))(image)
    rows, columns = max(1, round(height * scale)), max(1, round(width * scale))
    top, left = (SIDE - rows) // 2, (SIDE - columns) // 2
    inside = out[:, top : top + rows, left : left + columns]
    assert_close(inside, pillow(image, columns, rows))
    page = torch.ones(SIDE, SIDE, dtype=torch.bool)
    page[top : top + rows, left : left + columns] = False
    assert page.any()
    assert (out[:, page] == torch.tensor([[124], [116], [104]])).all()


def test_pad_takes_the_mean_of_the_spec() -> None:
    """The page is what normalises to zero under the spec's own mean."""
    transform = build_eval_transform(spec(resize="pad", mean=(0.0, 0.5, 1.0)))
    assert transform(noise(10, 40))[:, 0, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize("resize", RESIZES)
def test_evaluation_leaves_its_input_alone(resize: str) -> None:
    """The decoded picture is not written to."""
    image = noise(SIDE, 90)
    before = image.clone()
    build_eval_transform(spec(resize=resize))(image)
    assert torch.equal(image, before)


# ---- training ---------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**63 - 1), height=st.integers(1, 90), width=st.integers(1, 90))
def test_training_is_a_function_of_picture_and_seed(seed: int, height: int, width: int) -> None:
    """Equal seeds give equal bits, whatever was drawn in between."""
    transform, image = build_train_transform(spec(**AUGMENTED)), noise(height, width)
    first = transform(image, seed)
    torch.rand(3)
    transform(image, seed ^ 1)
    assert torch.equal(transform(image, seed), first)
    assert torch.equal(build_train_transform(spec(**AUGMENTED))(image, seed), first)


@pytest.mark.parametrize("change", AUGMENTED)
def test_another_seed_gives_other_bits(change: str) -> None:
    """Each augmentation draws from the seed."""
    transform = build_train_transform(spec(**{change: AUGMENTED[change]}))
    image = noise(90, 90)
    outs = [transform(image, seed) for seed in range(12)]
    assert any(not torch.equal(out, outs[0]) for out in outs)


@pytest.mark.parametrize("resize", RESIZES)
def test_random_crops_do_not_depend_on_the_evaluation_resize(resize: str) -> None:
    """`resize` is about whole pictures."""
    out = build_train_transform(spec(resize=resize, **AUGMENTED))(noise(50, 80), 3)
    assert torch.equal(out, build_train_transform(spec(**AUGMENTED))(noise(50, 80), 3))


def test_global_generators_are_left_untouched() -> None:
    """Training's other draws go on as though no picture had been augmented."""
    states = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist())  # type: ignore[index, union-attr]
    expected = torch.rand(5)
    torch.set_rng_state(states[0])
    build_train_transform(spec(**AUGMENTED))(noise(50, 80), 3)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert torch.equal(torch.rand(5), expected)
    assert random.getstate() == states[1]
    assert np.random.get_state()[1].tolist() == states[2]  # type: ignore[index, union-attr]


def test_the_global_seed_does_not_matter() -> None:
    """Augmentation is no function of torch.manual_seed."""
    outs = []
    state = torch.get_rng_state()
    for seed in (1, 2):
        torch.manual_seed(seed)
        outs.append(build_train_transform(spec(**AUGMENTED))(noise(50, 80), 3))
    torch.set_rng_state(state)
    assert torch.equal(outs[0], outs[1])


def test_an_error_gives_the_generator_back() -> None:
    """A picture that cannot be augmented leaves no private seed behind."""
    state = torch.get_rng_state()
    with pytest.raises((ArithmeticError, RuntimeError, TypeError, ValueError)):
        build_train_transform(spec(**AUGMENTED))(torch.zeros(3, 0, 0, dtype=torch.uint8), 3)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize(("height", "width"), [(64, 64), (1, 1), (97, 161), (1, 5000)])
def test_without_augmentation_training_is_evaluation(height: int, width: int, resize: str) -> None:
    """crop_scale (1, 1) and no flip: bit for bit what evaluation sees."""
    image = noise(height, width)
    expected = build_eval_transform(spec(resize=resize))(image)
    for seed in range(3):
        assert torch.equal(build_train_transform(spec(resize=resize))(image, seed), expected)


def test_a_certain_flip_is_the_mirror_image() -> None:
    """horizontal_flip 1 turns left and right every time."""
    image = noise(90, 70)
    mirrored = build_eval_transform(spec())(image).flip(-1)
    for seed in range(5):
        assert torch.equal(build_train_transform(spec(horizontal_flip=1.0))(image, seed), mirrored)


def test_flips_come_at_their_rate() -> None:
    """A probability of 0.3 mirrors about three in ten."""
    image, transform = marked(), build_train_transform(spec(horizontal_flip=0.3))
    flipped = sum(int(transform(image, seed)[0, 0, -1] == 255) for seed in range(300))
    assert 60 < flipped < 120


def test_crops_keep_their_share_of_the_area() -> None:
    """Each crop keeps between least and most of the area, and they differ."""
    ramp = torch.linspace(0, 255, 200).to(torch.uint8)
    image = torch.stack(
        [ramp.expand(200, 200), ramp[:, None].expand(200, 200), torch.zeros(200, 200)]
    )
    transform = build_train_transform(spec(crop_scale=(0.25, 0.5)))
    shares = []
    for seed in range(60):
        out = transform(image.to(torch.uint8), seed).float()
        shares.append(float((out[0].max() - out[0].min()) * (out[1].max() - out[1].min())) / 255**2)
    assert 0.2 < min(shares) < 0.32
    assert 0.42 < max(shares) < 0.52


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (1, 5000), (5000, 1), (120, 90)])
@pytest.mark.parametrize("change", [*AUGMENTED, "all"])
def test_training_gives_the_square(change: str, size: tuple[int, int]) -> None:
    """Any picture under any augmentation gives (3, S, S) uint8, contiguous."""
    changes = AUGMENTED if change == "all" else {change: AUGMENTED[change]}
    for seed in range(4):
        out = build_train_transform(spec(**changes))(noise(*size), seed)
        assert out.shape == (3, SIDE, SIDE)
        assert out.dtype == torch.uint8
        assert out.is_contiguous()


@pytest.mark.parametrize("size", [(300, 300), (256, 401), (700, 240)])
def test_a_picture_at_half_its_size_is_cropped_at_the_same_place(size: tuple[int, int]) -> None:
    """Ramps show where it begins and ends; rounding seldom makes it another crop altogether."""
    transform = build_train_transform(spec(crop_scale=(0.2, 0.9)))
    down, across = (torch.linspace(0, 255, n).to(torch.uint8) for n in size)
    full = torch.stack([down[:, None].expand(size), across.expand(size), across.expand(size)])
    half = v2.functional.resize(full, [-(-n // 2) for n in size], antialias=True)
    apart = [(transform(full, i).float() - transform(half, i)).abs().mean() for i in range(60)]
    assert sum(off < 2.5 for off in apart) >= 57


def test_crops_reach_every_edge() -> None:
    """The place of a crop is drawn from all the room there is, its last pixel too."""
    image, crop = noise(3, 2), build_random_crop(spec(crop_scale=(1 / 6, 1 / 6)))
    corners = {tuple(crop(image)[:, 0, 0].tolist()) for _ in range(200)}
    assert corners == {tuple(image[:, y, x].tolist()) for y in range(3) for x in range(2)}


def test_colour_jitter_changes_colours_alone() -> None:
    """The picture stays in its place: one colour becomes one other colour."""
    image = torch.tensor([200, 100, 50], dtype=torch.uint8)[:, None, None].expand(3, 70, 70).clone()
    out = build_train_transform(spec(color_jitter=0.5))(image, 1)
    assert (out == out[:, :1, :1]).all()
    assert out[:, 0, 0].tolist() != [200, 100, 50]


def test_full_strength_is_allowed() -> None:
    """The ends of the config's ranges work."""
    for changes in ({"color_jitter": 1.0}, {"rand_augment": 10}, {"crop_scale": (1e-4, 1e-3)}):
        assert build_train_transform(spec(**changes))(noise(40, 40), 0).shape == (3, SIDE, SIDE)


def test_training_leaves_its_input_alone() -> None:
    """The decoded picture is not written to, even where nothing is augmented."""
    image = noise(SIDE, SIDE)
    before = image.clone()
    for changes in ({}, AUGMENTED):
        build_train_transform(spec(**changes))(image, 0)
    assert torch.equal(image, before)


@pytest.mark.parametrize("name", ["efficientnet_b0", "swin_t", "mobilenet_v2"])
def test_crop_is_what_torchvision_does_for_its_weights(name: str) -> None:
    """Interpolation and share of the crop of each set of weights give torchvision's pixels."""
    preset = get_model_weights(name).DEFAULT.transforms()
    found = find_preprocessing(name, None)
    wanted = {"interpolation": found.interpolation, "crop_share": found.crop_share}
    crop = build_eval_transform(spec(image_size=found.image_size, resize="crop", **wanted))
    image = functional.resize(noise(30, 40), [300, 400], antialias=True)
    resized = functional.resize(image, preset.resize_size, preset.interpolation, antialias=True)
    assert_close(crop(image), functional.center_crop(resized, preset.crop_size))


@pytest.mark.parametrize("how", [*RESIZES, "random"])
def test_every_resize_is_interpolated_as_asked_for(how: str) -> None:
    """Bicubic gives other pixels than bilinear, in evaluation and in training."""
    crops = {"crop_scale": (0.5, 0.6)} if how == "random" else {"resize": how}
    transforms = [
        build_train_transform(spec(interpolation=by, **crops)) for by in ("bilinear", "bicubic")
    ]
    one, other = (transform(noise(60, 90), 7) for transform in transforms)
    assert one.shape == other.shape
    assert not torch.equal(one, other)
