"""Writes images as folders in the OCI's layout.

Never writes a blob twice: a folder may hold several images, one after the other.
"""

import hashlib
import json
import os

KIND = "application/vnd.oci.image"


def write(folder, settings, layers):
    """An image, tagged `latest`; a layer is its bytes, the end of its media type and its diff id."""
    blobs = f"{folder}/blobs/sha256"
    os.makedirs(blobs, exist_ok=True)

    def put(data):
        digest = hashlib.sha256(data).hexdigest()
        if not os.path.exists(f"{blobs}/{digest}"):
            with open(f"{blobs}/{digest}", "wb") as blob:
                blob.write(data)
        return {"digest": f"sha256:{digest}", "size": len(data)}

    config = put(json.dumps({
        "architecture": "amd64", "os": "linux", "config": settings,
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{diff_id}" for _, _, diff_id in layers]},
    }).encode())
    manifest = put(json.dumps({
        "schemaVersion": 2, "mediaType": f"{KIND}.manifest.v1+json",
        "config": {"mediaType": f"{KIND}.config.v1+json", **config},
        "layers": [{"mediaType": f"{KIND}.layer.v1.{end}", **put(data)} for data, end, _ in layers],
    }).encode())
    with open(f"{folder}/index.json", "w", encoding="utf-8") as index:
        json.dump({"schemaVersion": 2, "manifests": [{
            "mediaType": f"{KIND}.manifest.v1+json", **manifest,
            "annotations": {"org.opencontainers.image.ref.name": "latest"},
        }]}, index)
    with open(f"{folder}/oci-layout", "w", encoding="utf-8") as version:
        version.write('{"imageLayoutVersion":"1.0.0"}')
