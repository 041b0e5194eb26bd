"""Using a trained captioning model: captions, heat maps, ONNX export."""
