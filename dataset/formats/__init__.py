"""Cameras in other tools' formats, out and in. Every writer goes through `base.camera_clip`, which refuses
stand-ins."""
