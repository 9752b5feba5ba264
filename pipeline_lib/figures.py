"""Pictures for people: contact sheets of generated images."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

TILE = 64  # pixels of one image on the sheet
GAP = 2
LABEL_WIDTH = 150
TITLE_HEIGHT = 28


def contact_sheet(rows: Mapping[str, Sequence[Image.Image]], title: str, path: Path) -> None:
    """Draw one row of images per class, the class name at its left, and write a PNG."""
    columns = max(len(images) for images in rows.values())
    width = LABEL_WIDTH + columns * (TILE + GAP)
    sheet = Image.new("RGB", (width, TITLE_HEIGHT + len(rows) * (TILE + GAP)), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(14)
    draw.text((8, 6), title, fill="black", font=font)
    for number, (name, images) in enumerate(rows.items()):
        top = TITLE_HEIGHT + number * (TILE + GAP)
        draw.text((8, top + TILE // 2 - 8), _shorten(name, draw, font), fill="black", font=font)
        for column, image in enumerate(images):
            # Small images are enlarged without smoothing: what the classifier saw is what the person sees.
            smaller = max(image.size) > TILE
            tile = image.resize((TILE, TILE), Image.Resampling.LANCZOS if smaller else Image.Resampling.NEAREST)
            sheet.paste(tile, (LABEL_WIDTH + column * (TILE + GAP), top))
    sheet.save(path, "PNG")


def _shorten(text: str, draw: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    if draw.textlength(text, font=font) <= LABEL_WIDTH - 12:
        return text
    while text and draw.textlength(text + "...", font=font) > LABEL_WIDTH - 12:
        text = text[:-1]
    return text + "..."
