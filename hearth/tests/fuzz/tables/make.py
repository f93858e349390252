"""Writes the tables that the fuzz target `parquet` starts from, as pyarrow writes them. Needs pyarrow."""

import json
import pathlib

import pyarrow as pa
import pyarrow.parquet as pq

folder = pathlib.Path(__file__).parent
images = [{"bytes": bytes([at] * (20 + at)), "path": f"{at}.jpg"} for at in range(9)]
labels = [at % 3 for at in range(9)]
table = pa.table({"image": pa.array(images), "label": pa.array(labels, pa.int64())})
names = {"info": {"features": {"label": {"names": ["cat", "dog", "eel"]}}}}
table = table.replace_schema_metadata({"huggingface": json.dumps(names)})
for name, options in {
    "plain": {"compression": "none", "use_dictionary": False},
    "dictionary": {"compression": "snappy", "use_dictionary": True},
    "groups": {"compression": "zstd", "row_group_size": 4, "data_page_size": 32},
    "version2": {"compression": "snappy", "data_page_version": "2.0", "row_group_size": 5},
}.items():
    # Without Arrow's own schema, which readers of images do not need.
    pq.write_table(table, folder / f"{name}.parquet", store_schema=False, write_statistics=False, **options)
