"""The winners of a token against topk; `test_training.py` holds the gradients against SAELens' trainer."""

import pytest
import torch

from stitch_utils.saes.sparse_step import top


@pytest.mark.parametrize(("m", "k"), [(40, 4), (64, 4), (64, 5), (128, 8), (123, 7), (512, 16), (8, 8)])
def test_the_winners_are_those_of_topk(m, k):
    generator = torch.Generator().manual_seed(m)
    pre = torch.randn(200, m, generator=generator)
    pre[::2].mul_(torch.arange(m) < m // 4)  # all the large ones in few groups; many ties at 0
    values, where = top(pre, k)
    assert torch.equal(pre.gather(1, where), values)
    torch.testing.assert_close(values.sort(1, descending=True).values, pre.topk(k).values, rtol=0, atol=0)
    assert all(len(set(row)) == k for row in where.tolist())
