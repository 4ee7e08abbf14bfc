"""`vipllava draw`: marks on a picture, saved as another picture."""

import click

from vipllava_jax.cli.numbers import Whole
from vipllava_jax.cli.pictures import check_saving, drawn, mark_option, save


@click.command()
@click.argument('image')
@click.argument('output')
@mark_option
@click.option(
    '--seed',
    type=Whole(0),
    help='Varies sizes, opacity and form as in training.  [default: fixed ones]',
)
def draw(image: str, output: str, marks: tuple[str, ...], seed: int | None) -> None:
    """Draw marks on IMAGE and save the result as OUTPUT; prints each mark's phrase, a line each.

    SHAPE is one of rectangle, ellipse, triangle, point, scribble, mask, mask-contour, arrow; COLOR one of
    red, lime, blue, yellow, fuchsia, aqua, orange, purple, gold, or #rrggbb.

    \b
    Examples:
      vipllava draw photo.jpg marked.png --mark rectangle:40,60,180,220:red
      vipllava draw photo.jpg marked.png --mark arrow:0.3,0.3,0.5,0.6:blue --mark point:120,80:lime
      vipllava draw photo.jpg marked.png --mark mask:40,60,180,60,110,220:gold:alpha=96
    """
    if not marks:
        raise ValueError('nothing to draw: add --mark SHAPE:X1,Y1,X2,Y2:COLOR')
    check_saving(output, [image])
    pictures, made = drawn([image], marks, seed)
    save(pictures[0], output, [image])
    for mark in made:
        click.echo(mark.phrase)
