"""The one vocabulary of cameras: rigid transforms, alignment, intrinsics, rays, projection, paths.

Conventions, everywhere in this package:

* `camera_to_world` maps camera coordinates to world coordinates; camera axes are OpenCV's (x right, y down,
  z forward); metres unless a name says otherwise.
* Pixel centres sit at +0.5: the centre of the top left pixel is (0.5, 0.5). Resizing therefore only
  multiplies intrinsics and cropping only subtracts.
* Quaternions are scalar first (`wxyz`) with w >= 0; a rotation by exactly pi takes the representative whose
  first non-zero component is positive.
* Tangent vectors are ordered translation, rotation: (rho, phi) for SE(3); a transform is exp(tangent),
  perturbations are the caller's choice of side.

Functions take numpy arrays (anything that is not a tensor is computed in float64) or torch tensors (dtype and
device are kept, gradients flow) with any number of leading batch dimensions, and return what they were given.
Functions that are numpy only say so."""
