"""Curvatures that travel: the same bits after a file, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import curvfluence as cf
from curvfluence.curvature.saved import CURVATURE, KEPT
from curvfluence.errors import InputError
from tests.problems import chain_problem, mixed_problem
from tests.zoo import zoo_problem

DAMPING = cf.Relative(0.1)
RUNGS: tuple[cf.Rung, ...] = (
    cf.EKFAC(),
    cf.EKFAC(cf.MonteCarlo(20, seed=1)),
    cf.KFAC(),
    cf.KFAC(eigenvectors=2),
    cf.EKFAC(eigenvectors=2),
    cf.KFAC(factored_damping=True),
    cf.Shampoo(),
    cf.TKFAC(),
    cf.EShampoo(),
    cf.BlockGGN(),
    cf.GGN(form=cf.inversion.Matrix()),
    cf.Hessian(),
    cf.Hessian(cf.hessian.Plain()),
    cf.Hessian(cf.hessian.Clip()),
    cf.Hessian(cf.hessian.Truncate(1e-6)),
    cf.Diagonal(),
    cf.Identity(),
)


@pytest.mark.parametrize("rung", RUNGS, ids=lambda rung: repr(rung))
@pytest.mark.parametrize("name", ["chain", "mixed", "embedding", "conv2d"])
def test_the_same_bits(rung: cf.Rung, name: str, tmp_path: Path) -> None:
    made = {"chain": chain_problem, "mixed": mixed_problem}
    problem = made[name]() if name in made else zoo_problem(name)
    curvature = cf.fit(problem, rung)
    wanted = cf.influence(problem, curvature, damping=DAMPING)
    curvature.save(tmp_path / "c")
    again = cf.Curvature.load(tmp_path / "c", problem)
    found = cf.influence(problem, again, damping=DAMPING)
    assert torch.equal(found.values, wanted.values)
    for field in ("rung", "fisher", "coverage", "lambdas", "notes", "unit"):
        assert getattr(found, field) == getattr(wanted, field), field
    v = torch.linspace(-1, 1, problem.parameters.count, dtype=problem.dtype)
    assert torch.equal(again.matvec(v), curvature.matvec(v))
    assert again.cost == curvature.cost
    mapped = cf.Curvature.load(tmp_path / "c", problem, mapped=True)
    assert torch.equal(cf.influence(problem, mapped, damping=DAMPING).values, wanted.values)


def test_maps_are_not_written_to(tmp_path: Path) -> None:
    """What is changed in memory stays there, and arrays of a map lie in no memory of their own."""
    problem = chain_problem()
    cf.fit(problem, cf.EKFAC()).save(tmp_path / "c")
    before = {file: file.read_bytes() for file in (tmp_path / "c").iterdir()}
    mapped = cf.Curvature.load(tmp_path / "c", problem, mapped=True)
    for block in mapped.blocks:
        for value in vars(block.operator).values():
            if isinstance(value, torch.Tensor):
                value.mul_(2)
    assert before == {file: file.read_bytes() for file in (tmp_path / "c").iterdir()}


def test_layers_that_share_inputs_have_one_file(tmp_path: Path) -> None:
    """Query, key and value of attention share A, and so its eigenvectors."""
    problem = zoo_problem("untied transformer")
    curvature = cf.fit(problem, cf.KFAC())
    curvature.save(tmp_path / "c")
    bases = [getattr(block.operator, "in_basis", None) for block in curvature.blocks]
    pointers = {x.data_ptr() for x in bases if x is not None}
    assert len(pointers) < sum(x is not None for x in bases)
    held = sum(file.stat().st_size for file in (tmp_path / "c").glob("*.npy"))
    tensors = {
        (value.data_ptr(), value.shape): value.nbytes
        for block in curvature.blocks
        for value in vars(block.operator).values()
        if isinstance(value, torch.Tensor)
    }
    wanted = sum(tensors.values()) + curvature.decay.nbytes
    assert wanted <= held < wanted + 256 * (len(tensors) + 1)
    loaded = cf.Curvature.load(tmp_path / "c", problem)
    again = [getattr(block.operator, "in_basis", None) for block in loaded.blocks]
    assert len({x.data_ptr() for x in again if x is not None}) == len(pointers)


@pytest.mark.parametrize(
    "form",
    [
        cf.inversion.SampleSpace(),
        cf.inversion.ConjugateGradients(),
        cf.inversion.SelectedRows(4),
    ],
    ids=lambda form: type(form).__name__,
)
def test_products_with_the_data_are_refused(form: cf.inversion.Form, tmp_path: Path) -> None:
    curvature = cf.fit(chain_problem(), cf.GGN(form=form))
    with pytest.raises(InputError, match="which no file holds"):
        curvature.save(tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_faults(tmp_path: Path) -> None:
    problem, folder = chain_problem(), tmp_path / "c"
    curvature = cf.fit(problem, cf.EKFAC())
    curvature.save(folder)
    with pytest.raises(InputError, match="exists: name a new folder"):
        curvature.save(folder)
    with pytest.raises(InputError, match="is of another problem, which differs in"):
        cf.Curvature.load(folder, mixed_problem())
    with pytest.raises(InputError, match="holds no saved curvature"):
        cf.Curvature.load(tmp_path, problem)
    file = folder / "0000.npy"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(InputError, match=r"0000\.npy is not what was written"):
        cf.Curvature.load(folder, problem)
    text = (folder / CURVATURE).read_text()
    (folder / CURVATURE).write_text(text.replace("KroneckerEigen", "FactoredKronecker", 1))
    with pytest.raises(InputError, match="is not what was written"):
        cf.Curvature.load(folder, problem)


def test_an_operator_that_is_not_listed_is_not_believed(tmp_path: Path) -> None:
    """Whoever wrote the file can seal it too: names that it gives are looked up in one table."""
    from msgspec import structs

    from curvfluence.curvature.saved import SavedCurvature
    from curvfluence.store.records import read, write

    problem, folder = chain_problem(), tmp_path / "c"
    cf.fit(problem, cf.EKFAC()).save(folder)
    said = read(folder / CURVATURE, SavedCurvature)
    assert said is not None
    first = said.blocks[0]
    for changed in (
        structs.replace(first.operator, kind="Popen"),
        structs.replace(first.operator, kind="Abs"),
        structs.replace(first.operator, tensors={}),
        structs.replace(first.operator, plain={"rank": 1, "shell": 1}),
        structs.replace(first.operator, tensors=dict.fromkeys(first.operator.tensors, "0099")),
    ):
        block = structs.replace(first, operator=changed)
        write(folder / CURVATURE, structs.replace(said, blocks=(block, *said.blocks[1:])))
        with pytest.raises(InputError, match="is of another model"):
            cf.Curvature.load(folder, problem)
    assert "Popen" not in KEPT


def test_blocks_that_do_not_belong_together(tmp_path: Path) -> None:
    """Sealed anew by whoever changed them: each parameter is in one block, and shapes, dtypes and
    names fit, or nothing is loaded."""
    import numpy as np
    from msgspec import structs

    from curvfluence.curvature.saved import SavedCurvature
    from curvfluence.store.arrays import write_array
    from curvfluence.store.records import read, write

    problem, folder = chain_problem(), tmp_path / "c"
    curvature = cf.fit(problem, cf.EKFAC())
    curvature.save(folder)
    said = read(folder / CURVATURE, SavedCurvature)
    assert said is not None
    first, *others = said.blocks
    for blocks in (
        (),
        (first,),
        (first, first, *others),
        (first, structs.replace(others[0], name=first.name), *others[1:]),
        (structs.replace(first, parameters=("nope",)), *others),
        (structs.replace(first, operator=others[0].operator), *others),
    ):
        write(folder / CURVATURE, structs.replace(said, blocks=tuple(blocks)))
        with pytest.raises(InputError, match=r"blocks|another model"):
            cf.Curvature.load(folder, problem)
    for decay in ("nope", "0000"):
        write(folder / CURVATURE, structs.replace(said, decay=decay))
        with pytest.raises(InputError, match="weight decay"):
            cf.Curvature.load(folder, problem)
    for name in ("0000", "0001", "0002"):
        array = np.load(folder / f"{name}.npy")
        for changed in (
            array.astype(np.float32), array.astype(np.int64), array > 0, array.flatten(),
            array[:1], array[0, 0], array.astype(">f8"), array.astype(np.longdouble),
        ):  # fmt: skip
            one = write_array(folder / f"{name}.npy", np.asarray(changed), name)
            write(folder / CURVATURE, structs.replace(said, arrays={**said.arrays, name: one}))
            with pytest.raises(InputError):
                cf.Curvature.load(folder, problem)
        spoilt = array.copy()
        spoilt[0, -1] = np.nan
        one = write_array(folder / f"{name}.npy", spoilt, name)
        write(folder / CURVATURE, structs.replace(said, arrays={**said.arrays, name: one}))
        for mapped in (False, True):
            with pytest.raises(InputError, match="NaN or infinity"):
                cf.Curvature.load(folder, problem, mapped=mapped)
        write_array(folder / f"{name}.npy", array, name)
    write(folder / CURVATURE, said)
    cf.Curvature.load(folder, problem)
    for bad in (tmp_path / ("n" * 300), "a\0b"):
        with pytest.raises(InputError):
            curvature.save(bad)
        with pytest.raises(InputError):
            cf.Curvature.load(bad, problem)
