"""An adapter on disk: PEFT's format, loading, predicting, inspecting, compressing and exporting."""
