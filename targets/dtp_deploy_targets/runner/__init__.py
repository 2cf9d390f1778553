"""What runs on a board: standard library only, Python 3.8 or newer. `dtp_deploy_targets.parcel` packs it into one file.

Nothing here may import NumPy, except `onnx_session`, which runs where ONNX Runtime (and so NumPy) is installed.
"""
