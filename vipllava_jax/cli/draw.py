"""`vipllava draw`: marks on a picture, saved as another picture."""

import click

from vipllava_jax.cli.numbers import WholeNumber
from vipllava_jax.cli.paths import FILE
from vipllava_jax.cli.pictures import check_picture_output, mark_option, mark_pictures, save_picture


@click.command()
@click.argument('image', type=FILE)
@click.argument('output', type=FILE)
@mark_option
@click.option(
    '--seed',
    metavar='N',
    type=WholeNumber(0),
    help='Vary size, opacity and form of the marks randomly with this seed, as in training.  [default: no '
    'variation]',
)
def draw(image: str, output: str, marks: tuple[str, ...], seed: int | None) -> None:
    """Draw marks on the picture IMAGE (- reads it from stdin), and save the result as OUTPUT.

    SHAPE is one of rectangle, ellipse, triangle, point, scribble, mask, mask-contour, arrow; COLOR is one of
    red, lime, blue, yellow, fuchsia, aqua, orange, purple, gold, or #rrggbb. Prints the phrase of each mark,
    one per line.

    \b
    Examples:
      vipllava draw photo.jpg marked.png --mark rectangle:40,60,180,220:red
      vipllava draw photo.jpg marked.png --mark arrow:0.3,0.3,0.5,0.6:blue --mark point:120,80:lime
      vipllava draw photo.jpg marked.png --mark mask:40,60,180,60,110,220:gold:alpha=96
    """
    if not marks:
        raise ValueError('nothing to draw: add --mark SHAPE:X1,Y1,X2,Y2:COLOR')
    check_picture_output(output, [image])
    (picture,), drawn = mark_pictures([image], marks, seed)
    save_picture(picture, output, [image])
    for mark in drawn:
        click.echo(mark.phrase)
