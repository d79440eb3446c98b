"""Pictures of clips: folders of images and video files, read exactly by frame, and videos as they are written."""
