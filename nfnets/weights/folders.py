"""Folders of weights with a model card, ready for the Hugging Face Hub."""

import dataclasses
import json
import os

from nfnets.errors import UserError
from nfnets.files import local_path, write_text_atomically
from nfnets.weights.files import save_weights
from nfnets.weights.fitting import Arrays
from nfnets.weights.hub import CONFIG_FILE, WEIGHTS_FILE
from nfnets.weights.info import WeightsInfo, model_of

_CARD = """---
library_name: nfnets
license: {license}
pipeline_tag: image-classification
tags:
- image-classification
- nfnets
- jax
- haiku
---

# {title}

{model}, {params:,} parameters, {classes} classes, for images of {size} x {size} pixels
(`{preprocessing}`), in JAX and Haiku.

- Weights: {source}
- Classes: {names}

```python
import nfnets

model, params, state = nfnets.from_pretrained("hf://OWNER/{title}")
```

`nfnets predict --model=hf://OWNER/{title} photo.jpg` classifies images.
"""
_SHOWN_CLASSES = 10


def save_pretrained(
    folder: str | os.PathLike[str],
    params: Arrays,
    state: Arrays | None = None,
    info: WeightsInfo | None = None,
    *,
    license: str = "other",
) -> None:
    """Writes a folder that `from_pretrained` reads, here or from the Hugging Face Hub.

    It has a `model.safetensors` of `save_weights`, its metadata as `config.json`, and a
    `README.md`, the model card, to be completed by hand. To publish it:

        nfnets.save_pretrained("flowers", params, state, info, license="apache-2.0")
        huggingface_hub.create_repo("me/flowers")
        huggingface_hub.upload_folder(repo_id="me/flowers", folder_path="flowers")

    Args:
      folder: created if necessary; files of the same names are replaced.
      params: module -> name -> array of NumPy or JAX.
      state: module -> name -> array, batch-norm statistics.
      info: metadata; the model and the number of classes are needed.
      license: the Hub's identifier of a license, such as `apache-2.0`.

    Raises:
      UserError: the metadata is incomplete, or the folder cannot be written.
    """
    info = info or WeightsInfo()
    model_of(info, folder)
    out = local_path(folder)
    names = info.class_names or ()
    shown = ", ".join(names[:_SHOWN_CLASSES]) + ", ..." * (len(names) > _SHOWN_CLASSES)
    card = _CARD.format(
        license=json.dumps(license),
        title=out.resolve().name,
        model=info.model,
        params=sum(array.size for arrays in params.values() for array in arrays.values()),
        classes=info.num_classes,
        size=info.image_size,
        preprocessing=info.preprocessing,
        source=info.source or "unknown",
        names=shown or "not named",
    )
    config = {k: v for k, v in dataclasses.asdict(info).items() if v is not None}
    config.pop("checksum", None)
    try:
        out.mkdir(parents=True, exist_ok=True)
        save_weights(out / WEIGHTS_FILE, params, state, info)
        write_text_atomically(out / CONFIG_FILE, json.dumps(config, indent=2) + "\n")
        write_text_atomically(out / "README.md", card)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}") from None
